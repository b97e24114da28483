//! What requests of signed-in users count against. One table, so that what is limited, and what is not and why, can be
//! read in one place; a test fails on an endpoint that writes and does not stand here.
//!
//! Requests without a session are counted by address, in their handlers.

use http::Method;

use crate::limits::Class;

/// What a request counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The user's bucket of this class.
    User(Class),
    /// None, for this reason.
    Exempt(&'static str),
}

use Limit::{Exempt, User};

const BY_ADDRESS: Limit = Exempt("nobody is signed in: counted by address");
const BY_OPENID: Limit = Exempt("shows an OpenID token: counted for its user, in the handler");
const NOTHING: Limit = Exempt("always refused, and nothing is done");
const ENDS: Limit = Exempt("ends sessions, which must always be possible");

/// Methods, the path without its generation and with `{}` for each argument, and the limit. Reading is limited where it
/// is costly; it does not have to stand here.
const TABLE: &[(&[Method], &str, Limit)] = &[
    // Sessions and accounts.
    (&[Method::POST], "/login", BY_ADDRESS),
    (&[Method::POST], "/register", BY_ADDRESS),
    (&[Method::POST], "/_synapse/admin/v1/register", BY_ADDRESS),
    (&[Method::POST], "/refresh", BY_ADDRESS),
    (&[Method::POST], "/login/get_token", User(Class::Account)),
    (&[Method::POST], "/logout", ENDS),
    (&[Method::POST], "/logout/all", ENDS),
    (&[Method::POST], "/account/password", User(Class::Account)),
    (&[Method::POST], "/account/deactivate", User(Class::Account)),
    (&[Method::POST], "/account/3pid", User(Class::Account)),
    (&[Method::POST], "/account/3pid/add", User(Class::Account)),
    (&[Method::POST], "/account/3pid/bind", User(Class::Account)),
    (&[Method::POST], "/account/3pid/delete", User(Class::Account)),
    (&[Method::POST], "/account/3pid/unbind", User(Class::Account)),
    (&[Method::POST], "/account/3pid/email/requestToken", NOTHING),
    (&[Method::POST], "/account/3pid/msisdn/requestToken", NOTHING),
    (&[Method::POST], "/account/password/email/requestToken", NOTHING),
    (&[Method::POST], "/account/password/msisdn/requestToken", NOTHING),
    (&[Method::POST], "/register/email/requestToken", NOTHING),
    (&[Method::POST], "/register/msisdn/requestToken", NOTHING),
    (&[Method::PUT, Method::DELETE], "/devices/{}", User(Class::Account)),
    (&[Method::POST], "/delete_devices", User(Class::Account)),
    (&[Method::PUT, Method::DELETE], "/profile/{}/{}", User(Class::Account)),
    (&[Method::POST], "/user/{}/openid/request_token", User(Class::Calls)),
    (&[Method::POST], "/user/{}/filter", User(Class::Account)),
    (&[Method::PUT], "/user/{}/account_data/{}", User(Class::Account)),
    (
        &[Method::PUT],
        "/user/{}/rooms/{}/account_data/{}",
        User(Class::Account),
    ),
    (
        &[Method::PUT, Method::DELETE],
        "/user/{}/rooms/{}/tags/{}",
        User(Class::Account),
    ),
    (
        &[Method::PUT, Method::DELETE],
        "/pushrules/global/{}/{}",
        User(Class::Account),
    ),
    (&[Method::PUT], "/pushrules/global/{}/{}/enabled", User(Class::Account)),
    (&[Method::PUT], "/pushrules/global/{}/{}/actions", User(Class::Account)),
    // Rooms.
    (&[Method::POST], "/createRoom", User(Class::RoomCreation)),
    (&[Method::POST], "/rooms/{}/upgrade", User(Class::RoomCreation)),
    (&[Method::POST], "/rooms/{}/report", User(Class::Account)),
    (&[Method::POST], "/rooms/{}/report/{}", User(Class::Account)),
    (&[Method::POST], "/users/{}/report", User(Class::Account)),
    (&[Method::POST], "/join/{}", User(Class::Join)),
    (&[Method::POST], "/rooms/{}/join", User(Class::Join)),
    (&[Method::POST], "/knock/{}", User(Class::Join)),
    (&[Method::POST], "/rooms/{}/invite", User(Class::Invite)),
    (&[Method::POST], "/rooms/{}/leave", User(Class::Message)),
    (&[Method::POST], "/rooms/{}/kick", User(Class::Message)),
    (&[Method::POST], "/rooms/{}/ban", User(Class::Message)),
    (&[Method::POST], "/rooms/{}/unban", User(Class::Message)),
    (&[Method::POST], "/rooms/{}/forget", User(Class::Account)),
    (&[Method::PUT], "/rooms/{}/send/{}/{}", User(Class::Message)),
    (&[Method::PUT], "/rooms/{}/redact/{}/{}", User(Class::Message)),
    (&[Method::PUT], "/rooms/{}/state/{}", User(Class::Message)),
    (&[Method::PUT], "/rooms/{}/state/{}/", User(Class::Message)),
    (&[Method::PUT], "/rooms/{}/state/{}/{}", User(Class::Message)),
    (
        &[Method::PUT, Method::DELETE],
        "/directory/room/{}",
        User(Class::Account),
    ),
    (&[Method::PUT], "/directory/list/room/{}", User(Class::Account)),
    // What is not kept.
    (&[Method::PUT], "/rooms/{}/typing/{}", User(Class::Ephemeral)),
    (&[Method::POST], "/rooms/{}/receipt/{}/{}", User(Class::Ephemeral)),
    (&[Method::POST], "/rooms/{}/read_markers", User(Class::Ephemeral)),
    (&[Method::PUT], "/presence/{}/status", User(Class::Ephemeral)),
    (&[Method::PUT], "/sendToDevice/{}/{}", User(Class::ToDevice)),
    // Keys.
    (&[Method::POST], "/keys/upload", User(Class::Keys)),
    (&[Method::POST], "/keys/query", User(Class::Keys)),
    (&[Method::POST], "/keys/claim", User(Class::Keys)),
    (&[Method::POST], "/keys/device_signing/upload", User(Class::Keys)),
    (&[Method::POST], "/keys/signatures/upload", User(Class::Keys)),
    (&[Method::POST], "/room_keys/version", User(Class::Keys)),
    (
        &[Method::PUT, Method::DELETE],
        "/room_keys/version/{}",
        User(Class::Keys),
    ),
    (
        &[Method::GET, Method::PUT, Method::DELETE],
        "/room_keys/keys",
        User(Class::Keys),
    ),
    (
        &[Method::GET, Method::PUT, Method::DELETE],
        "/room_keys/keys/{}",
        User(Class::Keys),
    ),
    (
        &[Method::GET, Method::PUT, Method::DELETE],
        "/room_keys/keys/{}/{}",
        User(Class::Keys),
    ),
    // Media.
    (&[Method::POST], "/_matrix/media/v1/create", User(Class::MediaUpload)),
    (&[Method::POST], "/_matrix/media/v3/upload", User(Class::MediaUpload)),
    (&[Method::POST], "/_matrix/media/v1/upload", User(Class::MediaUpload)),
    (&[Method::POST], "/_matrix/media/r0/upload", User(Class::MediaUpload)),
    (
        &[Method::PUT],
        "/_matrix/media/v3/upload/{}/{}",
        User(Class::MediaUpload),
    ),
    (&[Method::GET], "/media/download/{}/{}", User(Class::MediaDownload)),
    (&[Method::GET], "/media/download/{}/{}/{}", User(Class::MediaDownload)),
    (&[Method::GET], "/media/thumbnail/{}/{}", User(Class::MediaDownload)),
    // Searches.
    (&[Method::POST], "/publicRooms", User(Class::Search)),
    (&[Method::POST], "/user_directory/search", User(Class::Search)),
    (&[Method::GET], "/rooms/{}/threads", User(Class::Search)),
    (&[Method::GET], "/rooms/{}/hierarchy", User(Class::Search)),
    (&[Method::GET], "/rooms/{}/timestamp_to_event", User(Class::Search)),
    (&[Method::GET], "/mutual_rooms", User(Class::Search)),
    (&[Method::GET], "/user/mutual_rooms", User(Class::Search)),
    // Calls.
    (
        &[Method::GET, Method::POST],
        "/delayed_events/{}",
        User(Class::DelayedEvents),
    ),
    (&[Method::GET], "/delayed_events", User(Class::DelayedEvents)),
    (&[Method::GET], "/voip/turnServer", User(Class::Calls)),
    (&[Method::POST], "/delayed_events/{}/{}", User(Class::DelayedEvents)),
    (&[Method::POST], "/rtc/livekit/get_token", User(Class::Calls)),
    (
        &[Method::POST],
        "/rtc/livekit/delegate_delayed_leave",
        User(Class::Calls),
    ),
    (&[Method::POST], "/livekit/jwt/sfu/get", BY_OPENID),
    (&[Method::POST], "/livekit/jwt/get_token", BY_OPENID),
    (&[Method::POST], "/livekit/jwt/delegate_delayed_leave", BY_OPENID),
];

/// What the requests to one path count against, by method.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PathLimits {
    get: Option<Limit>,
    put: Option<Limit>,
    post: Option<Limit>,
    delete: Option<Limit>,
}

impl PathLimits {
    /// Looked up once for each route, when it is registered.
    pub(super) fn of(path: &str) -> Self {
        let path = plain(path);
        let mut limits = Self::default();
        for (methods, _, limit) in TABLE.iter().filter(|(_, listed, _)| *listed == path) {
            for method in *methods {
                let slot = match *method {
                    Method::GET => &mut limits.get,
                    Method::PUT => &mut limits.put,
                    Method::POST => &mut limits.post,
                    _ => &mut limits.delete,
                };
                *slot = Some(*limit);
            }
        }
        limits
    }

    pub(super) fn limit(&self, method: &Method) -> Option<Limit> {
        match *method {
            Method::GET | Method::HEAD => self.get,
            Method::PUT => self.put,
            Method::POST => self.post,
            Method::DELETE => self.delete,
            _ => None,
        }
    }
}

/// A route's path as [`TABLE`] has it: all generations of an endpoint share their limit.
fn plain(path: &str) -> String {
    let path = match path.strip_prefix("/_matrix/client/") {
        None => path,
        Some(rest) => {
            let (generation, rest) = rest.split_once('/').unwrap_or((rest, ""));
            match rest.split_once('/') {
                // Unstable paths begin with the name of their proposal.
                Some((proposal, rest)) if generation == "unstable" && proposal.contains('.') => rest,
                _ => rest,
            }
        }
    };
    let mut plain = String::with_capacity(path.len() + 1);
    let mut in_argument = false;
    if !path.starts_with('/') {
        plain.push('/');
    }
    for c in path.chars() {
        match c {
            '{' => in_argument = true,
            '}' => {
                in_argument = false;
                plain.push_str("{}");
            }
            _ if in_argument => {}
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_generations_of_a_path_are_one() {
        for path in [
            "/_matrix/client/v3/rooms/{room_id}/join",
            "/_matrix/client/r0/rooms/{roomId}/join",
            "/_matrix/client/unstable/rooms/{id}/join",
            "/_matrix/client/unstable/org.matrix.msc1/rooms/{id}/join",
        ] {
            assert_eq!(plain(path), "/rooms/{}/join", "{path}");
        }
        assert_eq!(plain("/_matrix/media/v3/upload"), "/_matrix/media/v3/upload");
    }
}
