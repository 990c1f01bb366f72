//! Encrypted connections.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::EdgeError;

/// A certificate with its key.
#[derive(Debug, Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
}

impl Tls {
    /// Reads a chain of certificates and the key of the first of them, both in PEM.
    ///
    /// # Errors
    /// If a file cannot be read, holds none, or the two do not belong together.
    pub fn open(certificates: &Path, key: &Path) -> Result<Self, EdgeError> {
        let error = |file: &Path, what: String| EdgeError::Tls { file: file.display().to_string(), what };
        let chain = CertificateDer::pem_file_iter(certificates)
            .and_then(|all| all.collect::<Result<Vec<_>, _>>())
            .map_err(|e| error(certificates, format!("cannot read certificates: {e}; give a PEM file")))?;
        if chain.is_empty() {
            return Err(error(certificates, "has no certificate; give a PEM file".to_owned()));
        }
        let private = PrivateKeyDer::from_pem_file(key)
            .map_err(|e| error(key, format!("cannot read a private key: {e}; give a PEM file")))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private))
            .map_err(|e| error(certificates, format!("cannot be used with {}: {e}", key.display())))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls { config: Arc::new(config) })
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.clone())
    }
}
