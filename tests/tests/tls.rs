//! HTTPS, signalling over it and TURN over TLS, with certificates of a private authority and clients that check them.

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use reqwest::{Method, StatusCode};
use serde_json::json;
use system_tests::{Client, Engine, Server, Setup, Uclient, UdpEcho, eventually, free_port, on_both_engines};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName},
};

/// How long after its files changed a certificate may stay in use.
const RENEWAL: Duration = Duration::from_secs(15);

/// An authority that nobody but the test trusts.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "The test's own authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key can be made");
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).expect("a certificate can be made"),
        }
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Writes a certificate for localhost and its key.
    fn certify(&self, directory: &Path) {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let params = CertificateParams::new(names).expect("these are names");
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate can be made");
        fs::write(directory.join("chain.pem"), certificate.pem()).expect("the temporary directory is writable");
        fs::write(directory.join("key.pem"), key.serialize_pem()).expect("the temporary directory is writable");
    }

    /// A TLS connection whose server has shown a certificate of this authority.
    async fn connect(&self, port: u16, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots
            .add(self.issuer.der().clone())
            .expect("the authority's certificate is one");
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await?;
        let name = ServerName::try_from(name.to_owned()).expect("the test names a host");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

/// A server with HTTPS on a port of its own; plain HTTP remains.
struct Secured {
    server: Server,
    authority: Arc<Authority>,
    files: TempDir,
    port: u16,
}

impl Secured {
    async fn start(engine: Engine) -> Self {
        let authority = Arc::new(Authority::new());
        let files = TempDir::new().expect("the temporary directory is writable");
        authority.certify(files.path());
        let port = free_port();
        let path = |name: &str| format!("{:?}", files.path().join(name));
        let server = Setup::new(engine)
            .set("listen", "public_url", format!("\"https://localhost:{port}\""))
            .set("tls", "addresses", format!("[\"127.0.0.1:{port}\"]"))
            .set("tls", "certificate", path("chain.pem"))
            .set("tls", "private_key", path("key.pem"))
            .set("turn", "allow_peers", "[\"127.0.0.0/8\"]")
            .start()
            .await;
        Self {
            server,
            authority,
            files,
            port,
        }
    }

    /// A port of 127.0.0.1 from which connections go on over TLS, with the certificate checked.
    async fn tunnel(&self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let (authority, target) = (self.authority.clone(), self.port);
        tokio::spawn(async move {
            while let Ok((mut inside, _)) = listener.accept().await {
                let authority = authority.clone();
                tokio::spawn(async move {
                    let mut outside = authority
                        .connect(target, "localhost")
                        .await
                        .expect("the certificate is genuine");
                    // How it ends is the ends' affair.
                    let _ = copy_bidirectional(&mut inside, &mut outside).await;
                });
            }
        });
        port
    }

    fn client(&self) -> Client {
        Client::trusting(format!("https://localhost:{}", self.port), &self.authority.pem())
    }
}

async fn clients_that_check_certificates_chat_and_call(engine: Engine) {
    let secured = Secured::start(engine).await;
    let user = secured.client().register("careful").await;
    let room_id = user.create_room(&json!({ "preset": "public_chat" })).await;
    let sent = user
        .try_send(&room_id, "1", "over TLS")
        .await
        .expect("the server answers");
    assert_eq!(sent.status, StatusCode::OK, "{}", sent.body);
    let stored = user.all_messages(&room_id).await;
    assert_eq!(
        stored.iter().map(|message| message.body.as_str()).collect::<Vec<_>>(),
        ["over TLS"]
    );

    // Signalling over the same port, where the server says it is.
    let call = user.call_token(&room_id).await;
    assert_eq!(call.url, format!("wss://localhost:{}/livekit/sfu", secured.port));
    let stream = secured.authority.connect(secured.port, "localhost").await;
    call.join(stream.expect("the certificate is genuine")).await;

    // The checks are real: another authority, and another name.
    let distrusting = Client::trusting(format!("https://localhost:{}", secured.port), &Authority::new().pem());
    assert!(
        !distrusting.answers().await,
        "a certificate of a strange authority is accepted"
    );
    let error = secured.authority.connect(secured.port, "example.org").await;
    error.expect_err("the certificate is not for this name");
    let plain = reqwest::get(format!("http://localhost:{}/_matrix/client/versions", secured.port)).await;
    assert!(plain.is_err(), "plain HTTP is answered on the TLS port");
}

async fn turn_over_tls_relays(engine: Engine) {
    let secured = Secured::start(engine).await;
    let user = secured.client().register("turner").await;
    let offered = user.ask(Method::GET, "/_matrix/client/v3/voip/turnServer", None).await;
    let uri = format!("turns:localhost:{}?transport=tcp", secured.port);
    let uris = offered["uris"].as_array().expect("the answer lists addresses");
    assert!(uris.contains(&json!(uri)), "{offered}");

    // A binding request (RFC 8489 §5) over a connection whose certificate was checked.
    let stream = secured.authority.connect(secured.port, "localhost").await;
    let mut stream = stream.expect("the certificate is genuine");
    let mut request = [0; 20];
    request[1] = 1;
    request[4..8].copy_from_slice(&0x2112_A442_u32.to_be_bytes());
    stream.write_all(&request).await.expect("the relay reads");
    let mut head = [0; 20];
    stream.read_exact(&mut head).await.expect("the relay answers");
    assert_eq!(head[..2], [1, 1], "a binding success response");

    // coturn's client checks no certificates, and over TLS takes apart no records with several messages: what it sends
    // goes through a tunnel that does.
    let peer = UdpEcho::start().await;
    let tunnel = secured.tunnel().await;
    let uclient = Uclient::with_credentials_of(&user, tunnel).await.towards(&peer);
    uclient.loses_nothing(&["-t"]).await;
    assert!(peer.heard() > 0);

    let direct = Uclient::with_credentials_of(&user, secured.port).await.towards(&peer);
    direct.hears_back(&["-t", "-S"]).await;
}

/// Renewal programs replace the files; nobody restarts the server, and nobody's connection ends.
async fn a_renewed_certificate_is_used_without_a_restart(engine: Engine) {
    let secured = Secured::start(engine).await;
    let client = secured.client().register("patient").await;
    let before = shown(&secured).await;
    assert_eq!(before, shown(&secured).await);

    secured.authority.certify(secured.files.path());
    let renewed = eventually("the new certificate is shown", RENEWAL, async || {
        let now = shown(&secured).await;
        (now != before).then_some(now)
    })
    .await;
    assert_eq!(renewed, shown(&secured).await);
    client.ask(Method::GET, "/_matrix/client/v3/account/whoami", None).await;

    // A file that is none changes nothing.
    fs::write(secured.files.path().join("key.pem"), "half a ke").expect("the temporary directory is writable");
    eventually("the server complains", RENEWAL, async || {
        secured.server.log().contains("the old one stays").then_some(())
    })
    .await;
    assert_eq!(renewed, shown(&secured).await);
}

/// The certificate that the server shows to a new connection.
async fn shown(secured: &Secured) -> Vec<u8> {
    let stream = secured.authority.connect(secured.port, "localhost").await;
    let stream = stream.expect("the certificate is genuine");
    let (_, session) = stream.get_ref();
    let chain = session.peer_certificates().expect("a server shows certificates");
    chain[0].to_vec()
}

on_both_engines!(
    clients_that_check_certificates_chat_and_call,
    turn_over_tls_relays,
    a_renewed_certificate_is_used_without_a_restart,
);
