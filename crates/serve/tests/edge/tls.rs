//! Encrypted connections.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use zamba_serve::edge::{Settings, Tls};

use crate::support::{Running, eventually, read_to_end, request, settings};

struct Certified {
    _dir: tempfile::TempDir,
    tls: Tls,
    roots: RootCertStore,
}

fn certified() -> Certified {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    for (a, b) in [(&key, &key), (&certificate, &certificate), (&dir.path().join("none"), &key)] {
        let error = Tls::open(a, b).unwrap_err().to_string();
        assert!(error.contains("PEM") && !error.contains('\n'), "{error}");
    }
    Certified { tls: Tls::open(&certificate, &key).unwrap(), roots, _dir: dir }
}

fn ask(server: &Running, roots: &RootCertStore, protocols: &[&[u8]]) -> std::io::Result<String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots.clone())
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    let client = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
    let mut stream = StreamOwned::new(client, server.connect());
    stream.write_all(request("GET /health", "Host: localhost\r\n", "").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    assert!(stream.conn.alpn_protocol().is_none_or(|p| p == b"http/1.1"));
    Ok(answer)
}

#[test]
fn only_http_1_is_spoken_over_tls() {
    let Certified { tls, roots, _dir } = certified();
    let settings = Settings { tls: Some(tls), header_timeout: Duration::from_millis(300), ..settings() };
    let server = Running::start(settings);
    for protocols in [&[][..], &[&b"http/1.1"[..]], &[&b"h2"[..], b"http/1.1"]] {
        let answer = ask(&server, &roots, protocols).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\"ok\"}"), "{answer}");
    }
    assert!(ask(&server, &roots, &[b"h2"]).is_err());
    // One that says nothing, and one that does not speak TLS.
    assert_eq!(read_to_end(&mut server.connect()), "");
    let plain = server.exchange(request("GET /health", "Host: localhost\r\n", ""));
    assert!(!plain.contains("HTTP/1.1"), "{plain}");
    eventually("all are counted", || server.metric("zamba_http_connections_cut", "handshake") == 3.0);
}
