//! matrix-rust-sdk, the code of Element X: logs in, syncs, and talks in an encrypted room.

use std::time::Duration;

use matrix_sdk::{
    Client, Room, RoomState,
    config::SyncSettings,
    ruma::{
        OwnedRoomId,
        api::client::{
            account::register::v3::Request as RegistrationRequest, room::create_room::v3::Request as CreateRoomRequest,
            uiaa,
        },
        events::room::message::{MessageType, OriginalSyncRoomMessageEvent, RoomMessageEventContent},
    },
};
use system_tests::{Engine, PASSWORD, Server, escape, eventually, on_both_engines};
use tokio::sync::mpsc;

/// A message as the recipient's handler got it: decrypted.
type Heard = mpsc::UnboundedReceiver<(OwnedRoomId, String)>;

/// A user registered and signed in by the SDK, with a handler for messages of others.
async fn signed_in(server: &Server, name: &str) -> (Client, Heard) {
    let registering = Client::builder()
        .homeserver_url(server.base_url())
        .build()
        .await
        .expect("the server is usable");
    let mut request = RegistrationRequest::new();
    request.username = Some(name.to_owned());
    request.password = Some(PASSWORD.to_owned());
    request.auth = Some(uiaa::AuthData::Dummy(uiaa::Dummy::new()));
    registering
        .matrix_auth()
        .register(request)
        .await
        .expect("registration is open");

    let client = Client::builder()
        .homeserver_url(server.base_url())
        .build()
        .await
        .expect("the server is usable");
    let login = client
        .matrix_auth()
        .login_username(name, PASSWORD)
        .initial_device_display_name("matrix-sdk");
    login.send().await.expect("the password is right");
    let (hear, heard) = mpsc::unbounded_channel();
    let own = client.user_id().expect("a signed-in client has a user").to_owned();
    client.add_event_handler(move |event: OriginalSyncRoomMessageEvent, room: Room| {
        let hear = hear.clone();
        let from_other = event.sender != own;
        async move {
            if let MessageType::Text(text) = event.content.msgtype
                && from_other
            {
                // The test may have ended; then nobody listens any more.
                let _ = hear.send((room.room_id().to_owned(), text.body));
            }
        }
    });
    sync(&client).await;
    (client, heard)
}

/// One classic sync that waits for news for a moment.
async fn sync(client: &Client) {
    let settings = SyncSettings::default().timeout(Duration::from_secs(1));
    client.sync_once(settings).await.expect("the server answers the sync");
}

/// Syncs until the client hears a message.
async fn next_heard(client: &Client, heard: &mut Heard) -> (OwnedRoomId, String) {
    eventually("a message is heard", Duration::from_secs(30), async || {
        sync(client).await;
        heard.try_recv().ok()
    })
    .await
}

async fn two_users_talk_encrypted(engine: Engine) {
    let server = Server::start(engine).await;
    let (frida, mut frida_hears) = signed_in(&server, "frida").await;
    let (gustav, mut gustav_hears) = signed_in(&server, "gustav").await;

    let mut request = CreateRoomRequest::new();
    request.invite = vec![gustav.user_id().expect("a signed-in client has a user").to_owned()];
    let room = frida.create_room(request).await.expect("a room can be created");
    room.enable_encryption()
        .await
        .expect("the creator may encrypt the room");
    sync(&frida).await;

    let invited = eventually("gustav is invited", Duration::from_secs(30), async || {
        sync(&gustav).await;
        gustav
            .get_room(room.room_id())
            .filter(|room| room.state() == RoomState::Invited)
    });
    invited.await.join().await.expect("an invited user may join");
    eventually("gustav is in the encrypted room", Duration::from_secs(30), async || {
        sync(&gustav).await;
        sync(&frida).await;
        let joined = gustav
            .get_room(room.room_id())
            .filter(|room| room.state() == RoomState::Joined)?;
        let encrypted = joined
            .latest_encryption_state()
            .await
            .is_ok_and(|state| state.is_encrypted());
        (encrypted && room.joined_members_count() == 2).then_some(())
    })
    .await;

    room.send(RoomMessageEventContent::text_plain("who tends the fire?"))
        .await
        .expect("a member may send");
    let (place, text) = next_heard(&gustav, &mut gustav_hears).await;
    assert_eq!((place.as_ref(), text.as_str()), (room.room_id(), "who tends the fire?"));

    let answer = gustav.get_room(room.room_id()).expect("gustav joined the room");
    answer
        .send(RoomMessageEventContent::text_plain("all of us"))
        .await
        .expect("a member may send");
    let (_, text) = next_heard(&frida, &mut frida_hears).await;
    assert_eq!(text, "all of us");

    // What the server has is ciphertext.
    let other_device = server.client().login("gustav", PASSWORD).await;
    let path = format!(
        "/_matrix/client/v3/rooms/{}/messages?dir=b&limit=100",
        escape(room.room_id().as_str())
    );
    let page = other_device.ask(reqwest::Method::GET, &path, None).await;
    let events = page["chunk"].as_array().expect("a page lists events");
    let count = |kind: &str| events.iter().filter(|event| event["type"] == kind).count();
    assert_eq!((count("m.room.encrypted"), count("m.room.message")), (2, 0), "{page}");
}

on_both_engines!(two_users_talk_encrypted);
