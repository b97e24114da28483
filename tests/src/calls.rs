//! Joining a call as a MatrixRTC client does: an OpenID token of a user, handed to the authorisation service, is a token
//! for the SFU's signalling.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::Client;

/// How long the SFU may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a client needs to join a room's call, as `/sfu/get` answers it.
#[derive(Debug, Clone)]
pub struct CallToken {
    /// `ws://` or `wss://`, where the signalling is.
    pub url: String,
    /// The SFU token.
    pub jwt: String,
}

impl Client {
    /// The identity under which this device is known in calls.
    pub fn call_identity(&self) -> String {
        format!("{}:{}", self.user_id, self.device_id)
    }

    /// The body of a request for a token.
    pub async fn call_request(&self, room_id: &str) -> Value {
        let path = format!("/_matrix/client/v3/user/{}/openid/request_token", self.user_id);
        let openid = self.ask(Method::POST, &path, Some(&json!({}))).await;
        json!({ "room": room_id, "openid_token": openid, "device_id": self.device_id })
    }

    /// A token for the room's call, from the service that the server names as its transport.
    pub async fn call_token(&self, room_id: &str) -> CallToken {
        let path = "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports";
        let transports = self.ask(Method::GET, path, None).await;
        let service = transports["rtc_transports"]
            .as_array()
            .and_then(|all| all.iter().find(|transport| transport["type"] == "livekit"))
            .and_then(|transport| transport["livekit_service_url"].as_str())
            .unwrap_or_else(|| panic!("no livekit transport in {transports}"));
        let service = service
            .strip_prefix(self.base_url())
            .unwrap_or_else(|| panic!("{service} is not on this server"));
        let request = self.call_request(room_id).await;
        let answer = self
            .anonymous()
            .request(Method::POST, &format!("{service}/sfu/get"), Some(&request))
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        let field = |name: &str| {
            answer.body[name]
                .as_str()
                .unwrap_or_else(|| panic!("no {name} in {}", answer.body))
                .to_owned()
        };
        CallToken {
            url: field("url"),
            jwt: field("jwt"),
        }
    }
}

/// A signalling connection of LiveKit's client protocol.
pub type Signalling<S> = WebSocketStream<S>;

impl CallToken {
    /// Joins over a stream that is connected to the server, and has been let in when it returns.
    ///
    /// # Panics
    /// When the SFU does not let the client in.
    pub async fn join<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> Signalling<S> {
        let url = format!("{}/rtc?access_token={}&protocol=16", self.url, self.jwt);
        let request = url.into_client_request().expect("the token makes an address");
        let (mut signalling, _) = tokio_tungstenite::client_async(request, stream)
            .await
            .expect("the token lets the client in");
        let joined = timeout(PATIENCE, signalling.next()).await.expect("the SFU answers");
        // The join response comes first; it names the room's participant.
        assert!(
            matches!(&joined, Some(Ok(Message::Binary(bytes))) if !bytes.is_empty()),
            "{joined:?}"
        );
        signalling
            .send(Message::Ping("alive".into()))
            .await
            .expect("the SFU reads");
        loop {
            match timeout(PATIENCE, signalling.next())
                .await
                .expect("the SFU answers a ping")
            {
                Some(Ok(Message::Pong(_))) => return signalling,
                Some(Ok(_)) => {}
                end => panic!("the call's connection was cut: {end:?}"),
            }
        }
    }
}
