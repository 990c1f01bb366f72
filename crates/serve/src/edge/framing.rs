//! Where messages begin and end on a connection, read as strictly as the standard allows.
//!
//! Two programs that disagree about where a request ends can be made to see different requests: that is how
//! requests are smuggled past a proxy. So nothing passes here that anybody could read in another way: lines end
//! with CR LF and are not folded, the length of a body is said once and in one manner, chunks have neither
//! extensions nor trailers. The parser behind forgives more; it never gets to see what it would forgive.

/// Bytes of a header line that are looked at: both headers that matter, with a good deal of space around them.
const LOOKED_AT: usize = 64;
/// Most digits of a chunk's size.
const CHUNK_DIGITS: u8 = 8;

/// Follows the bytes of a connection.
#[derive(Debug, Default)]
pub(crate) struct Framing {
    state: State,
    head: Head,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between messages.
    #[default]
    Between,
    Head,
    /// In a body that has so many more bytes.
    Sized(u64),
    /// In the size of a chunk: its value and its digits so far.
    ChunkSize(u64, u8),
    /// After the CR behind the size of a chunk.
    ChunkSizeEnd(u64),
    ChunkData(u64),
    /// After the data of a chunk, and its CR.
    ChunkEnd,
    ChunkEndCr,
    /// After the last chunk, and the CR there.
    Last,
    LastCr,
    /// Nothing more is believed.
    Broken,
}

/// What is known of a head so far.
#[derive(Debug, Default)]
struct Head {
    /// The beginning of the line, and the length of the whole.
    line: Vec<u8>,
    line_length: usize,
    /// Whether the request line is complete.
    requested: bool,
    after_cr: bool,
    length: Option<u64>,
    chunked: bool,
}

/// What was found cannot be believed.
#[derive(Debug, PartialEq, Eq)]
struct Bad;

impl Framing {
    /// Whether a head has begun and is not complete.
    pub(crate) fn in_head(&self) -> bool {
        self.state == State::Head
    }

    /// Whether all bytes so far are complete messages.
    pub(crate) fn between(&self) -> bool {
        self.state == State::Between
    }

    /// Whether [`Framing::follow`] has failed.
    pub(crate) fn broken(&self) -> bool {
        self.state == State::Broken
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// If a byte cannot be what stands there: how many of them are good before it.
    pub(crate) fn follow(&mut self, bytes: &[u8]) -> Result<(), usize> {
        let mut at = 0;
        while at < bytes.len() {
            at += match self.state {
                State::Sized(left) => self.skip(left, bytes.len() - at, State::Sized, State::Between),
                State::ChunkData(left) => {
                    self.skip(left, bytes.len() - at, State::ChunkData, State::ChunkEnd)
                }
                _ => match self.step(bytes[at]) {
                    Ok(next) => {
                        self.state = next;
                        1
                    }
                    Err(Bad) => {
                        self.state = State::Broken;
                        return Err(at);
                    }
                },
            };
        }
        Ok(())
    }

    /// Passes over data; gives how many bytes.
    fn skip(&mut self, left: u64, have: usize, rest: fn(u64) -> State, then: State) -> usize {
        let n = left.min(have as u64);
        self.state = if n == left { then } else { rest(left - n) };
        n as usize
    }

    fn step(&mut self, byte: u8) -> Result<State, Bad> {
        match (self.state, byte) {
            (State::Between, _) => {
                self.head = Head::default();
                self.head.step(byte)
            }
            (State::Head, _) => self.head.step(byte),
            (State::ChunkSize(size, digits), b'\r') if digits > 0 => Ok(State::ChunkSizeEnd(size)),
            (State::ChunkSize(size, digits), _) if digits < CHUNK_DIGITS => {
                let digit = char::from(byte).to_digit(16).ok_or(Bad)?;
                Ok(State::ChunkSize(size * 16 + u64::from(digit), digits + 1))
            }
            (State::ChunkSizeEnd(0), b'\n') => Ok(State::Last),
            (State::ChunkSizeEnd(size), b'\n') => Ok(State::ChunkData(size)),
            (State::ChunkEnd, b'\r') => Ok(State::ChunkEndCr),
            (State::ChunkEndCr, b'\n') => Ok(State::ChunkSize(0, 0)),
            (State::Last, b'\r') => Ok(State::LastCr),
            (State::LastCr, b'\n') => Ok(State::Between),
            _ => Err(Bad),
        }
    }
}

impl Head {
    fn step(&mut self, byte: u8) -> Result<State, Bad> {
        match byte {
            b'\n' if self.after_cr => {
                self.after_cr = false;
                return self.end_line();
            }
            _ if self.after_cr => return Err(Bad),
            b'\r' => self.after_cr = true,
            // A line that begins with a space would continue the one before.
            b' ' | b'\t' if self.line_length == 0 => return Err(Bad),
            // What stands behind it would be seen by some and not by others.
            b'#' if !self.requested => return Err(Bad),
            b'\t' | 0x20..=0x7e | 0x80..=0xff => {
                if self.line.len() < LOOKED_AT {
                    self.line.push(byte);
                }
                self.line_length += 1;
            }
            _ => return Err(Bad),
        }
        Ok(State::Head)
    }

    fn end_line(&mut self) -> Result<State, Bad> {
        if self.line_length == 0 {
            return if self.requested { Ok(self.body()) } else { Err(Bad) };
        }
        if self.requested {
            self.field()?;
        }
        self.requested = true;
        self.line.clear();
        self.line_length = 0;
        Ok(State::Head)
    }

    /// What follows the head.
    fn body(&self) -> State {
        match self.length {
            _ if self.chunked => State::ChunkSize(0, 0),
            None | Some(0) => State::Between,
            Some(length) => State::Sized(length),
        }
    }

    fn field(&mut self) -> Result<(), Bad> {
        let Some(colon) = self.line.iter().position(|&b| b == b':') else { return Ok(()) };
        let (name, value) = (&self.line[..colon], self.line[colon + 1..].trim_ascii());
        // As the most careless reader would see it.
        let plain: String = name.iter().map(|&b| char::from(b).to_ascii_lowercase()).collect();
        let plain = plain.trim().replace('_', "-");
        if plain != "content-length" && plain != "transfer-encoding" {
            return Ok(());
        }
        let said = self.length.is_some() || self.chunked;
        if said || name.len() != plain.len() || name.contains(&b'_') || self.line_length > LOOKED_AT {
            return Err(Bad);
        }
        if plain == "content-length" {
            self.length = Some(length(value)?);
        } else {
            self.chunked = value.eq_ignore_ascii_case(b"chunked");
            return if self.chunked { Ok(()) } else { Err(Bad) };
        }
        Ok(())
    }
}

/// A length in plain digits.
fn length(value: &[u8]) -> Result<u64, Bad> {
    let plain = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    let padded = value.len() > 1 && value[0] == b'0';
    if !plain || padded {
        return Err(Bad);
    }
    Ok(value.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows a text in pieces of every size; all must agree.
    #[track_caller]
    fn follow(text: &str) -> Result<State, usize> {
        let whole = |piece: usize| {
            let mut framing = Framing::default();
            for (i, part) in text.as_bytes().chunks(piece).enumerate() {
                framing.follow(part).map_err(|at| i * piece + at)?;
            }
            Ok(framing.state)
        };
        let first = whole(1);
        for piece in 2..=text.len() {
            assert_eq!(whole(piece), first, "pieces of {piece}");
        }
        first
    }

    #[test]
    fn messages_end_where_they_say() {
        for text in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab\r\n\nGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length:\t0 \r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nab\r\r\nA\r\n0123456789\r\n0\r\n\r\n",
        ] {
            assert_eq!(follow(text), Ok(State::Between), "{text:?}");
        }
        assert_eq!(follow("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab"), Ok(State::Sized(3)));
        assert_eq!(follow("GET / HTTP/1.1\r\nA: b"), Ok(State::Head));
    }

    #[test]
    fn the_first_byte_that_is_wrong_is_named() {
        assert_eq!(follow("GET / HTTP/1.1\nHost: a"), Err(14));
        assert_eq!(follow("GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n"), Err(22));
        assert_eq!(follow("GET /#x HTTP/1.1\r\n\r\n"), Err(5));
        assert_eq!(follow("\r\nGET / HTTP/1.1\r\n\r\n"), Err(1));
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for bad in [
            "\r\n",
            "g\r\n",
            "1;a=b\r\n",
            "123456789\r\n",
            "1\r\nab\r\n",
            "0\r\nA: b\r\n\r\n",
            "1\n",
            "-1\r\n",
        ] {
            assert!(follow(&format!("{chunked}{bad}")).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_length_is_said_once_and_plainly() {
        let twice = [
            "Content-Length: 1\r\nContent-Length: 1",
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 1",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ];
        let odd = [
            "Content-Length: +1",
            "Content-Length: -1",
            "Content-Length: 1, 1",
            "Content-Length: 0x1",
            "Content-Length:",
            "Content-Length: 1 1",
            "Content-Length: 01",
            "Content-Length: 1234567890123456789",
            "Content-Length : 1",
            "Content_Length: 1",
            "Transfer-Encoding: gzip",
            "Transfer-Encoding: chunked, gzip",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: xchunked",
            "Transfer_Encoding: chunked",
            "Transfer-Encoding\t: chunked",
            "Transfer-Encoding: \"chunked\"",
            "Transfer-Encoding:",
        ];
        for headers in twice.iter().chain(&odd) {
            assert!(follow(&format!("POST / HTTP/1.1\r\n{headers}\r\n\r\n")).is_err(), "{headers:?}");
        }
        let padded = format!("Content-Length: {}5", " ".repeat(LOOKED_AT));
        assert!(follow(&format!("POST / HTTP/1.1\r\n{padded}\r\n\r\n")).is_err());
    }
}
