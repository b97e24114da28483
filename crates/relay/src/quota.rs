//! How much of the relay one user, and all users together, may hold; and how fast an allocation may send.
//!
//! Leases return what they hold when dropped. Touched when allocations come and go, never per packet (but for the
//! allocation's own [`Bandwidth`]).

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Allocations in use, per user and in total.
#[derive(Debug, Clone)]
pub(crate) struct Quota(Arc<Mutex<Counts>>);

#[derive(Debug)]
struct Counts {
    per_user: HashMap<Arc<str>, u32>,
    total: u32,
    max_per_user: u32,
    max_total: u32,
}

/// Why there is no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exhausted {
    User,
    Total,
}

impl Quota {
    pub(crate) fn new(max_per_user: u32, max_total: u32) -> Self {
        Self(Arc::new(Mutex::new(Counts {
            per_user: HashMap::new(),
            total: 0,
            max_per_user,
            max_total,
        })))
    }

    pub(crate) fn lease(&self, user: &str) -> Result<QuotaLease, Exhausted> {
        let mut counts = self.0.lock();
        if counts
            .per_user
            .get(user)
            .is_some_and(|&held| held >= counts.max_per_user)
            || counts.max_per_user == 0
        {
            return Err(Exhausted::User);
        }
        if counts.total >= counts.max_total {
            return Err(Exhausted::Total);
        }
        let user: Arc<str> = counts
            .per_user
            .get_key_value(user)
            .map_or_else(|| Arc::from(user), |(user, _)| Arc::clone(user));
        *counts.per_user.entry(Arc::clone(&user)).or_default() += 1;
        counts.total += 1;
        Ok(QuotaLease {
            quota: self.clone(),
            user,
        })
    }

    /// Allocations in use.
    #[cfg(test)]
    pub(crate) fn total(&self) -> u32 {
        self.0.lock().total
    }
}

/// One allocation of one user.
#[derive(Debug)]
pub(crate) struct QuotaLease {
    quota: Quota,
    user: Arc<str>,
}

impl QuotaLease {
    pub(crate) fn user(&self) -> &str {
        &self.user
    }
}

impl Drop for QuotaLease {
    fn drop(&mut self) {
        let mut counts = self.quota.0.lock();
        counts.total -= 1;
        if let Some(held) = counts.per_user.get_mut(&self.user) {
            *held -= 1;
            if *held == 0 {
                counts.per_user.remove(&self.user);
            }
        }
    }
}

/// A token bucket in bytes; holds one second's worth.
#[derive(Debug)]
pub(crate) struct Bandwidth {
    /// 0 means unlimited.
    bytes_per_second: u64,
    available: u64,
    refilled: Instant,
}

impl Bandwidth {
    pub(crate) fn new(bytes_per_second: u64, now: Instant) -> Self {
        Self {
            bytes_per_second,
            available: bytes_per_second,
            refilled: now,
        }
    }

    /// Whether `bytes` more may pass.
    pub(crate) fn take(&mut self, bytes: usize, now: Instant) -> bool {
        if self.bytes_per_second == 0 {
            return true;
        }
        let bytes = bytes as u64;
        if self.available < bytes {
            let elapsed = now.saturating_duration_since(self.refilled).min(Duration::from_secs(1));
            let earned = u128::from(self.bytes_per_second) * elapsed.as_micros() / 1_000_000;
            // At most one second's worth of u64 bytes.
            let earned = u64::try_from(earned).unwrap_or(u64::MAX);
            self.available = self.available.saturating_add(earned).min(self.bytes_per_second);
            self.refilled = now;
        }
        let passes = self.available >= bytes;
        if passes {
            self.available -= bytes;
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_count_per_user_and_in_total_and_return() {
        let quota = Quota::new(2, 3);
        let first = quota.lease("a").expect("free");
        let _second = quota.lease("a").expect("free");
        assert_eq!(quota.lease("a").err(), Some(Exhausted::User));
        let _third = quota.lease("b").expect("free");
        assert_eq!(quota.lease("b").err(), Some(Exhausted::Total));
        drop(first);
        assert_eq!(quota.total(), 2);
        let _fourth = quota.lease("a").expect("returned");
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "an arbitrary origin for a test of elapsed time"
    )]
    fn bandwidth_refills_with_time() {
        let start = Instant::now();
        let mut bandwidth = Bandwidth::new(1000, start);
        assert!(bandwidth.take(1000, start));
        assert!(!bandwidth.take(1, start));
        assert!(!bandwidth.take(101, start + Duration::from_millis(100)));
        assert!(bandwidth.take(100, start + Duration::from_millis(100)));
        assert!(
            !bandwidth.take(1001, start + Duration::from_secs(60)),
            "no more than a second's worth is saved"
        );
        assert!(Bandwidth::new(0, start).take(usize::MAX, start));
    }
}
