//! The long-term credential mechanism (RFC 8489 §9.2) over credentials that the process itself minted.

use aws_lc_rs::hmac;
use credentials::turn::{Presented, parse_username};

use super::*;

/// Who made a request, proven by its MESSAGE-INTEGRITY.
pub(super) struct Authenticated<'a> {
    pub(super) presented: Presented<'a>,
    /// For the integrity of the response.
    pub(super) key: hmac::Key,
}

impl Server {
    /// RFC 8489 §9.2.4. The nonce is looked at first: a request with an invalid one costs one MAC and no more.
    ///
    /// The expiry in the username is *not* looked at: it bounds what can be begun, so only Allocate asks for it. A call
    /// that outlasts its credentials keeps its allocation.
    pub(super) fn authenticate<'a>(
        &self,
        now: Now,
        from: FiveTuple,
        message: &Message<'a>,
    ) -> Result<Authenticated<'a>, ErrorCode> {
        if !message.has_integrity() {
            return Err(ErrorCode::Unauthenticated);
        }
        let (Some(username), Some(realm), Some(nonce)) = (message.username, message.realm, message.nonce) else {
            return Err(ErrorCode::BadRequest);
        };
        if !self.nonces.is_valid(nonce, from.client, now.unix) {
            return Err(ErrorCode::StaleNonce);
        }
        let presented = parse_username(username).map_err(|_| ErrorCode::Unauthenticated)?;
        if realm != self.realm.as_bytes() {
            return Err(ErrorCode::Unauthenticated);
        }
        let key = self.secret.long_term_key(username, &self.realm);
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes());
        if !message.verify_integrity(&key) {
            return Err(ErrorCode::Unauthenticated);
        }
        Ok(Authenticated { presented, key })
    }

    /// An error response without integrity; with a challenge where a new nonce lets the client try again.
    pub(super) fn refuse(&mut self, now: Now, to: FiveTuple, message: &Message<'_>, code: ErrorCode) {
        let mut response = Encoder::new(Class::Error, message.method, message.transaction_id).error_code(code);
        if matches!(code, ErrorCode::Unauthenticated | ErrorCode::StaleNonce) {
            response = response
                .realm(&self.realm)
                .nonce(&self.nonces.issue(to.client, now.unix));
        }
        let response = finish(response, message, None);
        self.respond(to, response);
    }
}

/// What every response ends with.
pub(super) fn finish(response: Encoder, request: &Message<'_>, key: Option<&hmac::Key>) -> Vec<u8> {
    let mut response = response.software(SOFTWARE);
    if let Some(key) = key {
        response = response.integrity(key);
    }
    if request.fingerprint {
        response = response.fingerprint();
    }
    response.finish()
}
