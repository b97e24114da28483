//! Finding users.

use axum::extract::State;
use ruma::{OwnedUserId, api::client::user_directory::search_users};

use super::{ApiError, Routes, Ruma, RumaResponse};
use crate::{Homeserver, room::Membership};

/// Users in an answer, at most.
const MAX_LIMIT: usize = 50;
/// The longest term, in bytes.
const MAX_TERM: usize = 512;

pub(super) fn router() -> Routes {
    Routes::new().ruma(search)
}

/// How well a user fits; the least is the best.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Exact,
    Beginning,
    Inside,
}

impl Fit {
    /// `text` is looked at as whole words and as characters: languages without spaces are found inside their texts.
    fn of(text: &str, term: &str) -> Option<Self> {
        if text == term {
            return Some(Self::Exact);
        }
        let at = text.find(term)?;
        let begins = at == 0 || text[..at].ends_with(|c: char| !c.is_alphanumeric());
        Some(if begins { Self::Beginning } else { Self::Inside })
    }
}

/// `POST /_matrix/client/v3/user_directory/search`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3user_directorysearch>
async fn search(
    State(hs): State<Homeserver>,
    request: Ruma<search_users::v3::Request>,
) -> Result<RumaResponse<search_users::v3::Response>, ApiError> {
    let sender = &request.sender().user_id;
    let term = request.body.search_term.trim().to_lowercase();
    if term.len() > MAX_TERM {
        return Err(ApiError::invalid_param(format!(
            "`search_term` may have at most {MAX_TERM} bytes."
        )));
    }
    let limit = usize::try_from(u64::from(request.body.limit)).map_or(MAX_LIMIT, |limit| limit.min(MAX_LIMIT));
    let rooms = hs.rooms.memberships_of(sender).await?;
    let joined: Vec<i64> = rooms
        .values()
        .filter(|room| room.membership == Membership::Join)
        .map(|room| room.room_nid)
        .collect();
    let visible = (!hs.config.user_directory.show_everybody).then_some(&*joined);
    let terms: Vec<&str> = term.trim_start_matches('@').split_whitespace().collect();
    let mut found = Vec::new();
    for user in hs.store.listed_users(visible).await? {
        if user.user_id == sender.as_str() || terms.is_empty() {
            continue;
        }
        let Ok(user_id) = OwnedUserId::try_from(user.user_id) else {
            continue;
        };
        let text = |json: Option<String>| serde_json::from_str::<String>(&json?).ok();
        let name = text(user.display_name);
        let shown = name.as_deref().unwrap_or_default().to_lowercase();
        let id = user_id.as_str().trim_start_matches('@');
        // Every word of the term has to be found somewhere; the worst of them counts.
        let fits = terms
            .iter()
            .map(|term| {
                [
                    Fit::of(&shown, term),
                    Fit::of(user_id.localpart(), term),
                    Fit::of(id, term),
                ]
            })
            .map(|fits| fits.into_iter().flatten().min());
        let Some(fit) = fits
            .collect::<Option<Vec<Fit>>>()
            .and_then(|fits| fits.into_iter().max())
        else {
            continue;
        };
        found.push((fit, shown, user_id, name, text(user.avatar_url)));
    }
    found.sort_by(|a, b| (&a.0, &a.1, &a.2).cmp(&(&b.0, &b.1, &b.2)));
    let limited = found.len() > limit;
    let results = found
        .into_iter()
        .take(limit)
        .map(|(_, _, user_id, name, avatar_url)| {
            let mut user = search_users::v3::User::new(user_id);
            user.display_name = name;
            user.avatar_url = avatar_url.map(Into::into);
            user
        })
        .collect();
    Ok(RumaResponse(search_users::v3::Response::new(results, limited)))
}
