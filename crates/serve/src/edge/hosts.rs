//! Under which names the server may be asked for, and by which pages.
//!
//! A page from anywhere can make a browser send requests to this machine. It cannot choose what the browser says
//! of it in `Origin`, nor, when it makes its own name point here, hide that name in `Host`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::http::{HeaderMap, HeaderName, header};

use super::{EdgeError, Settings};

/// Names that may be asked for.
#[derive(Debug)]
pub(crate) struct Hosts {
    names: Vec<String>,
    /// Whether any name will do.
    all: bool,
    /// Whether any address will do: the server listens on all that the machine has, and a name that somebody made
    /// point here is none.
    addresses: bool,
    origins: Vec<String>,
}

/// Why a request is not for us, or not from those who may ask.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Foreign {
    /// No `Host`, or more than one, or one that makes no sense.
    NoHost,
    Host,
    Origin,
}

impl Hosts {
    pub(crate) fn new(settings: &Settings, address: SocketAddr) -> Result<Self, EdgeError> {
        let ip = address.ip();
        let mut names = vec![];
        if ip.is_loopback() || ip.is_unspecified() {
            names.extend(["localhost", "127.0.0.1", "[::1]"].map(str::to_owned));
        }
        names.push(written(ip));
        let mut all = false;
        for name in &settings.allowed_hosts {
            if name == "*" {
                all = true;
            } else if host(name).is_none_or(|(host, port)| host.len() != name.len() || port.is_some()) {
                return Err(EdgeError::Host(name.clone()));
            }
            names.push(name.to_ascii_lowercase());
        }
        let origins = settings
            .allowed_origins
            .iter()
            .map(|text| origin(text).ok_or_else(|| EdgeError::Origin(text.clone())));
        Ok(Hosts { names, all, addresses: ip.is_unspecified(), origins: origins.collect::<Result<_, _>>()? })
    }

    /// Checks `Host` and `Origin`; gives the origin if there is one.
    pub(crate) fn check<'a>(&self, headers: &'a HeaderMap) -> Result<Option<&'a str>, Foreign> {
        let given = single(headers, header::HOST).map_err(|()| Foreign::NoHost)?.ok_or(Foreign::NoHost)?;
        let (name, _) = host(given).ok_or(Foreign::Host)?;
        if !(self.all || self.knows(name)) {
            return Err(Foreign::Host);
        }
        let Some(origin) = single(headers, header::ORIGIN).map_err(|()| Foreign::Origin)? else {
            return Ok(None);
        };
        let ours = |origin: &str| {
            let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            rest.is_some_and(|rest| rest.eq_ignore_ascii_case(given))
        };
        let known = self.origins.iter().any(|known| known.eq_ignore_ascii_case(origin));
        if known || ours(origin) { Ok(Some(origin)) } else { Err(Foreign::Origin) }
    }

    fn knows(&self, name: &str) -> bool {
        let listed = self.names.iter().any(|known| known.eq_ignore_ascii_case(name));
        listed || self.addresses && address(name).is_some()
    }
}

/// The only value of a header, if it has one.
fn single(headers: &HeaderMap, name: HeaderName) -> Result<Option<&str>, ()> {
    let mut all = headers.get_all(name).iter();
    let Some(value) = all.next() else { return Ok(None) };
    if all.next().is_some() {
        return Err(());
    }
    value.to_str().map(Some).map_err(|_| ())
}

/// An address as a `Host` writes it.
fn written(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// The address that a name is, if it is one, written in the one usual way.
fn address(name: &str) -> Option<IpAddr> {
    match name.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => name.parse().ok().filter(IpAddr::is_ipv4),
    }
}

/// Takes `name` or `name:port` apart.
fn host(text: &str) -> Option<(&str, Option<u16>)> {
    let end = if text.starts_with('[') { text.find(']')? + 1 } else { text.find(':').unwrap_or(text.len()) };
    let (name, rest) = text.split_at(end);
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_';
    let good = if name.starts_with('[') {
        address(name).is_some()
    } else {
        !name.is_empty() && name.bytes().all(plain)
    };
    if !good {
        return None;
    }
    if rest.is_empty() {
        return Some((name, None));
    }
    let digits = rest.strip_prefix(':')?;
    let plain = !digits.is_empty() && digits.len() <= 5 && digits.bytes().all(|b| b.is_ascii_digit());
    let port = digits.parse().ok().filter(|&port| plain && port > 0)?;
    Some((name, Some(port)))
}

/// An origin as browsers write it.
fn origin(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    let (_, rest) = text.split_once("://").filter(|(scheme, _)| {
        !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    })?;
    host(rest)?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(address: &str, names: &[&str], origins: &[&str]) -> Result<Hosts, EdgeError> {
        let owned = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect();
        let settings =
            Settings { allowed_hosts: owned(names), allowed_origins: owned(origins), ..Settings::default() };
        Hosts::new(&settings, address.parse().unwrap())
    }

    fn check(hosts: &Hosts, list: &[(&'static str, &str)]) -> Result<(), Foreign> {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            map.append(*name, value.parse().unwrap());
        }
        hosts.check(&map).map(|_| ())
    }

    #[test]
    fn a_server_on_all_addresses_takes_addresses_and_named_names() {
        let hosts = hosts("0.0.0.0:80", &["api.example.org"], &[]).unwrap();
        for good in ["10.1.2.3", "10.1.2.3:8080", "[2001:db8::1]:80", "localhost", "API.example.org:443"] {
            assert_eq!(check(&hosts, &[("host", good)]), Ok(()), "{good}");
        }
        for bad in
            ["example.org", "api.example.org.", "10.1.2.3.nip.io", "0x7f000001", "10.1.2.3:0", "10.1.2.03"]
        {
            assert_eq!(check(&hosts, &[("host", bad)]), Err(Foreign::Host), "{bad}");
        }
    }

    #[test]
    fn a_star_takes_all_names_and_no_nonsense() {
        let hosts = hosts("0.0.0.0:80", &["*"], &[]).unwrap();
        assert_eq!(check(&hosts, &[("host", "anything.example")]), Ok(()));
        assert_eq!(check(&hosts, &[("host", "a b")]), Err(Foreign::Host));
        assert_eq!(check(&hosts, &[]), Err(Foreign::NoHost));
        assert_eq!(check(&hosts, &[("host", "a"), ("host", "a")]), Err(Foreign::NoHost));
    }

    #[test]
    fn what_no_request_can_carry_is_not_allowed() {
        for bad in ["http://a", "a:80", "a/b", "", "a b", "*.example.org"] {
            assert!(hosts("127.0.0.1:80", &[bad], &[]).is_err(), "{bad}");
        }
        for bad in ["*", "example.org", "http://a/", "http://", "://a", "null"] {
            assert!(hosts("127.0.0.1:80", &[], &[bad]).is_err(), "{bad}");
        }
        assert!(hosts("127.0.0.1:80", &[], &["tauri://localhost", "https://a.example:8443"]).is_ok());
    }
}
