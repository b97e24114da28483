//! Rate limits: token buckets per user, and per address before somebody has logged in.
//!
//! Knows classes and rates, not endpoints. Memory is bounded: the bucket unused for longest is forgotten, which fills it.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hash},
    net::IpAddr,
    num::NonZeroUsize,
};

use lru::LruCache;
use parking_lot::Mutex;
use ruma::UserId;
use serde::Deserialize;
use tracing::warn;

use crate::{Clock, client_api::ApiError};

/// Buckets kept, all classes together.
const BUCKETS: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");

/// How often something may be done: `per_second` on average, `burst` at once.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// On average.
    pub per_second: f64,
    /// At once.
    pub burst: u32,
}

macro_rules! classes {
    ($($class:ident $key:ident $per_second:literal $burst:literal $doc:literal;)*) => {
        /// What is limited apart from each other.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Class {
            $(#[doc = $doc] $class,)*
        }

        impl Class {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$class),*];

            /// The setting that limits it.
            pub fn setting(self) -> &'static str {
                match self { $(Self::$class => concat!("rate_limits.", stringify!($key)),)* }
            }
        }

        /// `[rate_limits]`. The defaults stop a runaway script, not a person.
        #[derive(Debug, Clone, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Config {
            /// Whether anything is limited at all.
            pub enabled: bool,
            $(#[doc = $doc] pub $key: Rate,)*
        }

        impl Default for Config {
            fn default() -> Self {
                Self { enabled: true, $($key: Rate { per_second: $per_second, burst: $burst },)* }
            }
        }

        impl Config {
            /// Each setting's name and rate.
            pub fn rates(&self) -> impl Iterator<Item = (&'static str, Rate)> {
                [$((Class::$class.setting(), self.$key)),*].into_iter()
            }

            fn rate(&self, class: Class) -> Rate {
                match class { $(Class::$class => self.$key,)* }
            }
        }
    };
}

classes! {
    Login login 2.0 60 "Logins from one address.";
    Registration registration 1.0 60 "New accounts from one address.";
    Password password 0.2 10 "Attempts of a signed-in user to confirm something by password.";
    Message message 20.0 200 "Events sent to rooms.";
    RoomCreation room_creation 1.0 30 "Rooms created.";
    Join join 5.0 100 "Joins and knocks.";
    Invite invite 5.0 100 "Invitations.";
    Ephemeral ephemeral 20.0 200 "Typing notices, receipts and presence.";
    Account account 10.0 100 "Changes of account data, profile, filters and push rules.";
    Keys keys 10.0 200 "Uploads, queries and claims of keys.";
    ToDevice to_device 50.0 500 "Requests that send messages to devices.";
    MediaUpload media_upload 5.0 100 "Uploads of media.";
    MediaDownload media_download 100.0 1000 "Downloads and thumbnails of media.";
    Calls calls 10.0 200 "Requests for TURN credentials, OpenID tokens and entry to calls.";
    DelayedEvents delayed_events 20.0 300 "Requests about delayed events: of one user, or of one address where they carry no token.";
    Search search 5.0 50 "Searches: messages, users, rooms, directory.";
}

/// The limiter.
#[derive(Debug)]
pub struct Limits {
    config: Config,
    clock: Clock,
    hasher: RandomState,
    buckets: Mutex<LruCache<(Class, u64), Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    /// When `tokens` was right, Unix milliseconds.
    at: u64,
}

impl Limits {
    pub(crate) fn new(config: Config, clock: Clock) -> Self {
        Self {
            config,
            clock,
            hasher: RandomState::new(),
            buckets: Mutex::new(LruCache::new(BUCKETS)),
        }
    }

    /// Takes one from the user's bucket.
    ///
    /// # Errors
    /// 429 `M_LIMIT_EXCEEDED`, naming the setting, when it is empty.
    pub fn check(&self, user_id: &UserId, class: Class) -> Result<(), ApiError> {
        self.check_many(user_id, class, 1)
    }

    /// Takes `count` at once, or as many as the bucket ever holds.
    ///
    /// # Errors
    /// 429 `M_LIMIT_EXCEEDED`, naming the setting, when there are not so many in it.
    pub fn check_many(&self, user_id: &UserId, class: Class, count: usize) -> Result<(), ApiError> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.take(class, user_id.as_str(), count).map_err(|retry_after_ms| {
            warn!(%user_id, limit = class.setting(), retry_after_ms, "rate limit reached");
            ApiError::limit_exceeded(class.setting(), retry_after_ms)
        })
    }

    /// Takes one from the bucket of an address; an IPv6 network of 64 bits counts as one. `None` (nobody told the
    /// address) is not limited.
    ///
    /// # Errors
    /// 429 `M_LIMIT_EXCEEDED`, naming the setting, when it is empty.
    pub fn check_address(&self, ip: Option<IpAddr>, class: Class) -> Result<(), ApiError> {
        let Some(ip) = ip else { return Ok(()) };
        self.take(class, network(ip), 1).map_err(|retry_after_ms| {
            warn!(%ip, limit = class.setting(), retry_after_ms, "rate limit reached");
            ApiError::limit_exceeded(class.setting(), retry_after_ms)
        })
    }

    /// The error is the time until there are enough, in milliseconds.
    fn take(&self, class: Class, key: impl Hash, count: u32) -> Result<(), u64> {
        if !self.config.enabled {
            return Ok(());
        }
        let rate = self.config.rate(class);
        let burst = f64::from(rate.burst.max(1));
        let count = f64::from(count).min(burst);
        let now = self.clock.now_ms();
        let key = (class, self.hasher.hash_one(key));
        let mut buckets = self.buckets.lock();
        let bucket = buckets.get_or_insert_mut(key, || Bucket { tokens: burst, at: now });
        let elapsed = now.saturating_sub(bucket.at) as f64 / 1000.0;
        bucket.tokens = (bucket.tokens + elapsed * rate.per_second).min(burst);
        bucket.at = now;
        if bucket.tokens >= count {
            bucket.tokens -= count;
            return Ok(());
        }
        let wait = (count - bucket.tokens) / rate.per_second.max(0.001) * 1000.0;
        Err((wait.ceil() as u64).max(1))
    }
}

fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => v4.into(),
            None => std::net::Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX)).into(),
        },
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::clock::ManualClock;

    fn limits(clock: &ManualClock, change: impl FnOnce(&mut Config)) -> Limits {
        let mut config = Config::default();
        change(&mut config);
        Limits::new(config, Clock::new(clock.reader()))
    }

    fn user(name: &str) -> ruma::OwnedUserId {
        UserId::parse(format!("@{name}:test")).unwrap()
    }

    #[test]
    fn a_bucket_empties_names_its_setting_and_fills_again() {
        let clock = ManualClock::at(1_000);
        let limits = limits(&clock, |c| {
            c.message = Rate {
                per_second: 2.0,
                burst: 3,
            }
        });
        for _ in 0..3 {
            limits.check(&user("a"), Class::Message).unwrap();
        }
        let refused = limits.check(&user("a"), Class::Message).unwrap_err();
        assert_eq!(refused.errcode(), "M_LIMIT_EXCEEDED");
        assert!(
            refused.message().contains("rate_limits.message"),
            "{}",
            refused.message()
        );
        // Others, and other classes, are not touched.
        limits.check(&user("b"), Class::Message).unwrap();
        limits.check(&user("a"), Class::Join).unwrap();
        clock.advance_ms(500);
        limits.check(&user("a"), Class::Message).unwrap();
        assert!(limits.check(&user("a"), Class::Message).is_err());
        clock.advance_ms(3_600_000);
        for _ in 0..3 {
            limits.check(&user("a"), Class::Message).unwrap();
        }
        assert!(limits.check(&user("a"), Class::Message).is_err());
    }

    #[test]
    fn several_are_taken_at_once_or_none() {
        let clock = ManualClock::at(0);
        let limits = limits(&clock, |c| {
            c.invite = Rate {
                per_second: 1.0,
                burst: 5,
            }
        });
        limits.check_many(&user("a"), Class::Invite, 3).unwrap();
        assert!(limits.check_many(&user("a"), Class::Invite, 3).is_err());
        limits.check_many(&user("a"), Class::Invite, 2).unwrap();
        limits.check_many(&user("a"), Class::Invite, 0).unwrap();
        // More than the bucket holds is as much as it holds.
        assert!(limits.check_many(&user("a"), Class::Invite, 50).is_err());
        clock.advance_ms(5_000);
        limits.check_many(&user("a"), Class::Invite, 50).unwrap();
    }

    #[test]
    fn switched_off_nothing_is_limited() {
        let clock = ManualClock::at(0);
        let limits = limits(&clock, |c| {
            c.enabled = false;
            c.login = Rate {
                per_second: 0.0,
                burst: 0,
            };
        });
        for _ in 0..100 {
            limits
                .check_address(Some("10.0.0.1".parse().unwrap()), Class::Login)
                .unwrap();
        }
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let same = |a: &str, b: &str| network(a.parse().unwrap()) == network(b.parse().unwrap());
        assert!(same("2001:db8::1", "2001:db8::ffff:1"));
        assert!(!same("2001:db8:0:1::1", "2001:db8:0:2::1"));
        assert!(same("::ffff:10.0.0.1", "10.0.0.1"));
        assert!(!same("10.0.0.1", "10.0.0.2"));
    }

    #[test]
    fn memory_is_bounded() {
        let clock = ManualClock::at(0);
        let limits = limits(&clock, |_| {});
        for n in 0..BUCKETS.get() + 1000 {
            limits.take(Class::Keys, n, 1).unwrap();
        }
        assert_eq!(limits.buckets.lock().len(), BUCKETS.get());
    }
}
