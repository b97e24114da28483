//! Accepts HTTP/1.1 and HTTP/2 connections on several addresses, bounded in number and in patience, and drains them at
//! shutdown. Knows bytes and connections; the router answers.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use relay::RelayHandle;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use super::tls::{Peeked, is_turn};
use crate::config::Listen;

/// What a TLS listener needs besides: the certificate, and the relay for TURN over TLS.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) acceptor: TlsAcceptor,
    pub(crate) relay: Option<RelayHandle>,
}

/// What all listeners share.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    router: Router,
    header_timeout: Duration,
    idle_timeout: Duration,
    connections: Arc<Semaphore>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Server {
    pub(crate) fn new(router: Router, listen: &Listen, tasks: TaskTracker, shutdown: CancellationToken) -> Self {
        Self {
            router,
            header_timeout: listen.header_timeout,
            idle_timeout: listen.idle_timeout,
            connections: Arc::new(Semaphore::new(listen.max_connections.min(Semaphore::MAX_PERMITS))),
            tasks,
            shutdown,
        }
    }

    /// Serves one socket until shutdown, over TLS where there is an acceptor.
    pub(crate) fn serve(&self, listener: TcpListener, tls: Option<Tls>) {
        let server = self.clone();
        self.tasks.spawn(async move { server.accept(listener, tls).await });
    }

    async fn accept(self, listener: TcpListener, tls: Option<Tls>) {
        loop {
            // A place first, a connection second: what exceeds the cap waits in the kernel's queue.
            let accepted = async {
                let place = Arc::clone(&self.connections).acquire_owned().await;
                (place, listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                () = self.shutdown.cancelled() => return,
                both = accepted => both,
            };
            // The semaphore is never closed.
            let Ok(place) = place else { return };
            match accepted {
                Ok((stream, peer)) => {
                    // Answers are already whole; waiting to merge them costs latency.
                    let _ = stream.set_nodelay(true);
                    let (server, tls) = (self.clone(), tls.clone());
                    self.tasks.spawn(async move {
                        match tls {
                            Some(tls) => server.tls_connection(stream, peer, tls).await,
                            None => server.connection(stream, peer).await,
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, mostly: accepting again at once would only spin.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn tls_connection(self, stream: TcpStream, peer: SocketAddr, tls: Tls) {
        let Ok(server) = stream.local_addr() else { return };
        let opening = async { Peeked::new(tls.acceptor.accept(stream).await?).await };
        let opened = tokio::select! {
            () = self.shutdown.cancelled() => return,
            opened = tokio::time::timeout(self.header_timeout, opening) => opened,
        };
        match opened {
            Ok(Ok(Some((first, stream)))) => match tls.relay {
                Some(relay) if is_turn(first) => relay.serve_stream(stream, peer, server),
                _ => self.connection(stream, peer).await,
            },
            Ok(Ok(None)) | Err(_) => {}
            Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
        }
    }

    async fn connection<S>(self, stream: S, peer: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let activity = Arc::new(Activity::new());
        let service = {
            let (router, activity) = (self.router.clone(), Arc::clone(&activity));
            hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
                request.extensions_mut().insert(ConnectInfo(peer));
                let mut router = router.clone();
                let busy = activity.begin();
                async move {
                    let response = router.call(request.map(axum::body::Body::new)).await?;
                    // A body may take longer than its head: the connection is busy until it is through.
                    Ok::<_, std::convert::Infallible>(response.map(|body| Guarded { body, _busy: busy }))
                }
            })
        };
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(self.idle_timeout))
            .max_concurrent_streams(256);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let mut draining = false;
        loop {
            let patience = if activity.served_any() {
                self.idle_timeout
            } else {
                self.header_timeout
            };
            let idle = tokio::time::sleep(
                patience
                    .saturating_sub(activity.idle_for())
                    .max(Duration::from_millis(10)),
            );
            tokio::select! {
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(%peer, error = %error, "connection ended with an error");
                    }
                    return;
                }
                () = self.shutdown.cancelled(), if !draining => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = idle => {
                    if activity.idle_for() < patience {
                        continue;
                    }
                    if draining {
                        return;
                    }
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// A body that keeps its connection busy while it is sent.
struct Guarded<G> {
    body: axum::body::Body,
    _busy: G,
}

impl<G: Unpin> hyper::body::Body for Guarded<G> {
    type Data = <axum::body::Body as hyper::body::Body>::Data;
    type Error = <axum::body::Body as hyper::body::Body>::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

/// How many requests a connection is answering, and since when it is answering none.
#[derive(Debug)]
struct Activity {
    started: Instant,
    in_flight: AtomicU64,
    served: AtomicU64,
    /// Milliseconds after `started`.
    idle_since_ms: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            in_flight: AtomicU64::new(0),
            served: AtomicU64::new(0),
            idle_since_ms: AtomicU64::new(0),
        }
    }

    fn begin(self: &Arc<Self>) -> Busy {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.served.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    fn served_any(&self) -> bool {
        self.served.load(Ordering::Relaxed) > 0
    }

    /// Zero while a request is being answered.
    fn idle_for(&self) -> Duration {
        if self.in_flight.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        self.started
            .elapsed()
            .saturating_sub(Duration::from_millis(self.idle_since_ms.load(Ordering::Relaxed)))
    }
}

/// One request being answered; dropped with the response head or with the connection.
#[derive(Debug)]
struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0
            .idle_since_ms
            .store(self.0.started.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
