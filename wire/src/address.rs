//! Where a sheep listens: a host and a port.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest host name DNS knows.
const HOST_LEN_MAX: usize = 253;

/// A host, by name or number, and a port: `sheep-0.ring:7000`, `10.0.0.1:7000`, `[::1]:7000`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    host: String,
    port: u16,
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No port, or an IPv6 address without brackets.
    #[error("{0:?} is not HOST:PORT (an IPv6 address goes in brackets: [::1]:7000)")]
    Syntax(String),
    /// A character that no host name has, or a host that is too long.
    #[error("{0:?} is not a host name or an IP address")]
    Host(String),
    /// Not a number, 0, or too large.
    #[error("{0:?} is not a port: ports are 1 to 65535")]
    Port(String),
}

impl Address {
    /// An address; `host` is a name, an IPv4 address or an IPv6 address without brackets.
    pub fn new(host: &str, port: u16) -> Result<Self, AddressError> {
        if port == 0 {
            return Err(AddressError::Port(port.to_string()));
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let name = !host.is_empty() && host.len() <= HOST_LEN_MAX && host.bytes().all(plain);
        if !name && host.parse::<Ipv6Addr>().is_err() {
            return Err(AddressError::Host(host.to_owned()));
        }
        Ok(Self { host: host.to_owned(), port })
    }

    /// The host, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, never 0.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether only this machine can be meant: a loopback address or `localhost`.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let syntax = || AddressError::Syntax(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(syntax)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').filter(|h| h.contains(':')).ok_or_else(syntax)?,
            None if host.contains(':') => return Err(syntax()),
            None => host,
        };
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|_| digits).ok_or_else(|| AddressError::Port(port.to_owned()))?;
        Self::new(host, port)
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_prints_as_it_is_written() {
        for text in ["127.0.0.1:7000", "sheep-0.ring:1", "[::1]:65535", "my_host:80"] {
            assert_eq!(text.parse::<Address>().expect(text).to_string(), text);
        }
        assert!("[::1]:1".parse::<Address>().expect("good").is_loopback());
        assert!(!"10.0.0.1:1".parse::<Address>().expect("good").is_loopback());
    }

    #[test]
    fn what_is_not_host_and_port_is_refused() {
        for bad in [
            "",
            ":",
            "host",
            "host:",
            ":7000",
            "host:0",
            "host:65536",
            "host:-1",
            "host:+1",
            "::1:7000",
            "[::1]",
            "[::1:7000",
            "[host]:1",
            "a b:1",
            "a/b:1",
            "http://a:1",
            "a\0:1",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad:?}");
        }
    }
}
