//! Certificates from files: read at start, checked against their key, read again when the files change. Knows no HTTP.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_util::sync::CancellationToken;

/// How often the files are looked at, which costs two system calls.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("cannot read {path}: {source}\n  it must be a PEM file that the user of longhouse may read")]
    Read { path: PathBuf, source: pem::Error },
    #[error(
        "{path} holds no certificate\n  `tls.certificate` is the PEM file of the whole chain, own certificate first"
    )]
    NoCertificate { path: PathBuf },
    #[error(
        "the certificate and its key cannot be used: {0}\n  `tls.private_key` must be the key of the first certificate in `tls.certificate`"
    )]
    Unusable(rustls::Error),
}

/// When the chain and the key were last written; `None` where there is no file.
type Times = [Option<SystemTime>; 2];

/// Which files have been looked at.
#[derive(Debug)]
struct Seen {
    used: Times,
    refused: Option<Times>,
}

impl Seen {
    fn new(used: Times) -> Self {
        Self { used, refused: None }
    }
}

/// The certificate in use, and the files it came from.
#[derive(Debug)]
pub(crate) struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    pub(crate) fn read(chain: &Path, key: &Path) -> Result<Arc<Self>, TlsError> {
        let current = RwLock::new(Arc::new(load(chain, key)?));
        Ok(Arc::new(Self {
            chain: chain.to_owned(),
            key: key.to_owned(),
            current,
        }))
    }

    /// Accepts connections with the certificate that is in use at that moment.
    pub(crate) fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, TlsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Unusable)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Reads the files again whenever they change, until shutdown.
    pub(crate) async fn follow(self: Arc<Self>, shutdown: CancellationToken) {
        let mut seen = Seen::new(self.changed_at());
        let mut looks = tokio::time::interval(LOOK_AGAIN);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = looks.tick() => self.look_again(&mut seen),
            }
        }
    }

    /// A pair that cannot be used, perhaps because it is half written, is tried again at every look and reported once.
    fn look_again(&self, seen: &mut Seen) {
        let now = self.changed_at();
        if now == seen.used {
            return;
        }
        match load(&self.chain, &self.key) {
            Ok(certificate) => {
                *seen = Seen::new(now);
                *self.current.write() = Arc::new(certificate);
                tracing::info!(file = %self.chain.display(), "certificate replaced");
            }
            Err(error) if seen.refused != Some(now) => {
                seen.refused = Some(now);
                tracing::error!(%error, "the new certificate cannot be used; the old one stays");
            }
            Err(_) => {}
        }
    }

    fn changed_at(&self) -> Times {
        let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
        [modified(&self.chain), modified(&self.key)]
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read()))
    }
}

fn load(chain: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let read = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Read { path, source }
    };
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(chain)
        .map_err(read(chain))?
        .collect::<Result<_, _>>()
        .map_err(read(chain))?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate { path: chain.to_owned() });
    }
    let key = PrivateKeyDer::from_pem_file(key).map_err(read(key))?;
    CertifiedKey::from_der(certificates, key, &aws_lc_rs::default_provider()).map_err(TlsError::Unusable)
}

/// The first byte of a TURN stream: STUN types start with 0, channel numbers with 0x40 to 0x4f (RFC 8656 §12). HTTP/1.1
/// and HTTP/2 both start with a capital letter, of which 0x41 to 0x4f overlap: no HTTP method is sent as a channel
/// message before an allocation, so that only STUN types tell.
pub(crate) fn is_turn(first_byte: u8) -> bool {
    first_byte < 4
}

/// A stream whose first byte has been looked at.
#[derive(Debug)]
pub(crate) struct Peeked<S> {
    first: Option<u8>,
    stream: S,
}

impl<S: tokio::io::AsyncRead + Unpin> Peeked<S> {
    /// Reads the first byte; `None` when the client closed without sending any.
    pub(crate) async fn new(mut stream: S) -> io::Result<Option<(u8, Self)>> {
        let mut first = [0];
        if tokio::io::AsyncReadExt::read(&mut stream, &mut first).await? == 0 {
            return Ok(None);
        }
        Ok(Some((
            first[0],
            Self {
                first: Some(first[0]),
                stream,
            },
        )))
    }
}

impl<S: tokio::io::AsyncRead + Unpin> tokio::io::AsyncRead for Peeked<S> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        if buffer.remaining() > 0
            && let Some(first) = self.first.take()
        {
            buffer.put_slice(&[first]);
            return std::task::Poll::Ready(Ok(()));
        }
        std::pin::Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: tokio::io::AsyncWrite + Unpin> tokio::io::AsyncWrite for Peeked<S> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write_pair(directory: &Path, chain: &str, key: &str) -> (PathBuf, PathBuf) {
        let (chain_path, key_path) = (directory.join("chain.pem"), directory.join("key.pem"));
        fs::write(&chain_path, chain).expect("written");
        fs::write(&key_path, key).expect("written");
        (chain_path, key_path)
    }

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["example.org".to_owned()]).expect("made");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn wrong_files_are_refused_with_their_reason() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (chain, key) = pair();
        let (_, other_key) = pair();
        for (chain, key, expected) in [
            ("", key.as_str(), "holds no certificate"),
            (chain.as_str(), "", "cannot read"),
            (
                chain.as_str(),
                other_key.as_str(),
                "must be the key of the first certificate",
            ),
        ] {
            let (chain, key) = write_pair(directory.path(), chain, key);
            let error = Certificate::read(&chain, &key).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = Certificate::read(Path::new("/nowhere"), Path::new("/nowhere"))
            .expect_err("absent")
            .to_string();
        assert!(error.contains("cannot read /nowhere"), "{error}");
    }

    #[test]
    fn renewed_files_are_picked_up_and_broken_ones_are_not() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (chain, key) = pair();
        let (chain_path, key_path) = write_pair(directory.path(), &chain, &key);
        let certificate = Certificate::read(&chain_path, &key_path).expect("valid");
        let current = || Arc::clone(&certificate.current.read());
        let (first, mut seen) = (current(), Seen::new(certificate.changed_at()));
        let touch = |seconds| {
            let later = SystemTime::now() + Duration::from_secs(seconds);
            fs::File::options()
                .write(true)
                .open(&chain_path)
                .expect("opened")
                .set_modified(later)
                .expect("set");
        };

        certificate.look_again(&mut seen);
        assert!(Arc::ptr_eq(&first, &current()), "nothing changed");
        write_pair(directory.path(), &chain, "half a ke");
        touch(5);
        certificate.look_again(&mut seen);
        assert!(Arc::ptr_eq(&first, &current()), "the old one stays in use");
        let (chain, key) = pair();
        write_pair(directory.path(), &chain, &key);
        touch(10);
        certificate.look_again(&mut seen);
        assert!(!Arc::ptr_eq(&first, &current()), "the new one is in use");
    }
}
