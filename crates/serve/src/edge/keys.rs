//! Who may ask.

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use zamba::checkpoint::manifest::hex;

use super::EdgeError;
use crate::app::Caller;
use crate::engine::Salt;

/// Longest key, in bytes.
const LONGEST: usize = 512;

/// API keys, of which only hashes are kept.
#[derive(Clone, Default)]
pub struct Keys {
    digests: Vec<[u8; 32]>,
}

/// Says how many, and no more.
impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.digests.len())
    }
}

impl Keys {
    /// Keys of which each may ask.
    ///
    /// # Errors
    /// If one is empty, too long, or has characters that a header cannot carry safely.
    pub fn new<T: AsRef<str>>(keys: &[T]) -> Result<Self, EdgeError> {
        let good =
            |key: &str| (1..=LONGEST).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
        if let Some(bad) = keys.iter().position(|key| !good(key.as_ref())) {
            return Err(EdgeError::Key(bad + 1));
        }
        let mut digests: Vec<[u8; 32]> = keys.iter().map(|key| digest(key.as_ref().as_bytes())).collect();
        digests.sort_unstable();
        digests.dedup();
        Ok(Keys { digests })
    }

    /// Whether there are none, and everybody may ask.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.digests.len()
    }

    /// The hash of the key that a request gives, if it is one of these. The time that it takes depends on the
    /// length of what was given, and on nothing that is secret.
    pub(crate) fn find(&self, given: &[u8]) -> Option<&[u8; 32]> {
        let given = digest(given);
        let mut found = Choice::from(0);
        let mut index = 0;
        for (i, known) in self.digests.iter().enumerate() {
            let equal = known.ct_eq(&given);
            index.conditional_assign(&(i as u64), equal);
            found |= equal;
        }
        bool::from(found).then(|| &self.digests[index as usize])
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// The key that a request gives, as `Authorization: Bearer` or as `x-api-key`.
pub(crate) fn given(headers: &HeaderMap) -> Option<&[u8]> {
    let single = |name| {
        let mut all = headers.get_all(name).iter();
        let value = all.next()?;
        all.next().is_none().then(|| value.as_bytes())
    };
    if headers.contains_key(header::AUTHORIZATION) {
        let value = single(header::AUTHORIZATION)?;
        let (scheme, key) = value.split_at_checked(7)?;
        return scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii_start());
    }
    single(header::HeaderName::from_static("x-api-key"))
}

/// The owner of a key.
pub(crate) fn caller(digest: &[u8; 32], salted: bool) -> Caller {
    // The hash of a hash: neither number nor salt tells anything of the key, wherever they end up.
    let again = self::digest(digest);
    let salt = if salted { hex(&again[8..24]) } else { String::new() };
    Caller { tenant: number(&again), salt: Salt(salt.into()) }
}

/// Somebody without a key, known by address.
pub(crate) fn stranger(address: std::net::IpAddr) -> Caller {
    Caller { tenant: number(&digest(address.to_string().as_bytes())), salt: Salt::default() }
}

fn number(digest: &[u8; 32]) -> u64 {
    digest[..8].iter().fold(0, |n, &byte| n << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    #[test]
    fn only_whole_keys_are_found() {
        let keys = Keys::new(&["sk-Alpha", "sk-Beta"]).unwrap();
        for good in ["sk-Alpha", "sk-Beta"] {
            assert!(keys.find(good.as_bytes()).is_some());
        }
        for bad in ["", "sk-alpha", "sk-Alph", "sk-Alphaa", "sk-Gamma", "sk-Alpha\0", " sk-Alpha"] {
            assert!(keys.find(bad.as_bytes()).is_none(), "{bad}");
        }
        assert_ne!(keys.find(b"sk-Alpha"), keys.find(b"sk-Beta"));
    }

    #[test]
    fn keys_that_no_header_can_carry_are_refused() {
        for bad in ["", "two words", "tab\t", "é", &"x".repeat(513)] {
            assert!(matches!(Keys::new(&["good", bad]), Err(EdgeError::Key(2))), "{bad}");
        }
    }

    #[test]
    fn a_key_is_given_once_in_one_of_two_ways() {
        let authorization = |value| headers(&[("authorization", value)]);
        assert_eq!(given(&authorization("Bearer k")), Some(&b"k"[..]));
        assert_eq!(given(&authorization("bEARER  k")), Some(&b"k"[..]));
        assert_eq!(given(&headers(&[("x-api-key", "k")])), Some(&b"k"[..]));
        for none in ["k", "Basic k", "Bearer", "Bearerk"] {
            assert_eq!(given(&authorization(none)), None, "{none}");
        }
        assert_eq!(given(&headers(&[("authorization", "Bearer a"), ("authorization", "Bearer a")])), None);
        assert_eq!(given(&headers(&[("x-api-key", "a"), ("x-api-key", "a")])), None);
        assert_eq!(given(&headers(&[])), None);
    }

    #[test]
    fn owners_are_told_apart_and_keys_not_told() {
        let keys = Keys::new(&["a", "b"]).unwrap();
        let (a, b) = (keys.find(b"a").unwrap(), keys.find(b"b").unwrap());
        let (first, second) = (caller(a, true), caller(b, true));
        assert!(first.tenant != second.tenant && first.salt != second.salt);
        assert!(!hex(a).contains(&*first.salt.0));
        assert_eq!(caller(a, false).salt, Salt::default());
        assert_eq!(format!("{keys:?}"), "Keys(2)");
    }
}
