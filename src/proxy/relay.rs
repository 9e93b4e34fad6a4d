//! Both directions of a session, until both have ended or one side broke.
//!
//! ```text
//!   Relaying ──both sides sent FIN and everything was handed on──▶ end: in order
//!      │ └──no byte for `idle` (or `half_close` after a FIN)─────▶ end: idle, half-close
//!      │ one side broke: it was reset, or can't be reached
//!      ▼
//!   Flushing ──the other side has acknowledged every byte that the broken one had sent,
//!              or broke too, or none for `half_close`────────────▶ end: the other side is reset
//!
//!   Relaying ──idle, and a side speaks TLS──▶ Parting ──it was told──▶ end: in order
//! ```
//!
//! An end that one side can't see as the end (a reset, a timeout in mid-stream, a drain) reaches
//! the other side as RST, never as a FIN that would pass a truncation off as complete.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::bulk::{Bulk, WINDOW};
use super::pacing::Pacing;
use super::snapshot::ListenerPolicy;
use super::tls::Tls;
use crate::ring::{Flow, Relayed, Ring, Socket, Timer};
use crate::telemetry::Reason;
use crate::time::Instant;
use crate::tls::Session;

/// While a direction is blocked nothing is received on it, so that a reset comes without a
/// completion: it is looked for this often. And a pipe is given back after so long without use.
const BLOCKED_CHECK: Duration = Duration::from_secs(1);

/// How long the kernel may take to send the end of TLS.
const PARTING: Duration = Duration::from_secs(1);

/// The longest pause between two looks at what was acknowledged, in milliseconds.
const MOST_PAUSE: u8 = 64;

/// Bytes of a session are counted when it ends, and before that in portions of this size: to count each
/// move costs a percent.
const COUNTED_BYTES: u32 = 16 * 1024;

/// No progress to compare with.
const NOTHING: u64 = u64::MAX;

/// The same before the first look: the sockets and the timer do not wake the task that polls yet.
const UNBEGUN: u64 = u64::MAX - 1;

/// How a session's relaying ended.
pub(super) struct Outcome {
    pub(super) reason: Reason,
    /// From the client, handed to the backend's kernel.
    pub(super) bytes_received: u64,
    /// From the backend, handed to the client's kernel.
    pub(super) bytes_sent: u64,
    /// More of the reason, for the log.
    pub(super) detail: Option<String>,
}

impl Outcome {
    /// The session ended before there was a backend.
    pub(super) const fn nothing(reason: Reason) -> Self {
        Self {
            reason,
            bytes_received: 0,
            bytes_sent: 0,
            detail: None,
        }
    }
}

/// One of the two ends of a session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client = 0,
    Backend = 1,
}

/// Two connected sockets and what is known of their traffic.
pub(super) struct Relay {
    client: Socket,
    backend: Socket,
    timer: Timer,
    policy: Arc<ListenerPolicy>,
    /// When the last byte moved.
    active: Instant,
    /// When to look for idleness next.
    check_at: Instant,
    /// What both sides had acknowledged when that was last looked at; `NOTHING` = nothing was waiting
    /// to be acknowledged.
    progress: u64,
    bytes_received: u64,
    bytes_sent: u64,
    /// Of these, what was not taken by [`Relay::take_bytes`] yet.
    fresh: [u32; 2],
    /// By the side that a direction begins at.
    bulk: [Bulk; 2],
    pacing: Option<Box<Pacing>>,
    tls: Option<Box<Tls>>,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    /// As `Relaying`, while the backend may have closed before anything of this session.
    Ahead,
    /// `first_fin`: the side that sent FIN, once one has; `both`: the other one has, too.
    Relaying { first_fin: Option<Side>, both: bool },
    /// `broken` takes no more; the other side is reset after the bytes from before.
    Flushing {
        broken: Side,
        reason: Reason,
        until: Instant,
        /// In milliseconds.
        pause: u8,
    },
    /// Both sides were told that nothing more comes.
    Parting { reason: Reason, until: Instant },
}

impl State {
    const RELAYING: Self = Self::Relaying {
        first_fin: None,
        both: false,
    };
}

/// How a relay ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Ending {
    reason: Reason,
    /// RST instead of FIN.
    reset: bool,
}

impl Relay {
    /// `ahead`: the backend's connection was open before the session came. If it turns out to have been
    /// closed before anything of this session reached it, the relay ends with [`Ending::STALE`].
    pub(super) fn new(
        client: Socket,
        backend: Socket,
        tls: Option<Box<Tls>>,
        policy: Arc<ListenerPolicy>,
        ahead: bool,
    ) -> Self {
        let ring = client.ring();
        let now = ring.now();
        let limits = &policy.rate_limit;
        let bandwidth = limits.bandwidth.filter(|_| !limits.dry_run);
        let pacing = |rate| Box::new(Pacing::new(rate, now));
        Self {
            timer: ring.timer(),
            active: now,
            check_at: now + policy.timeouts.idle / 2,
            progress: UNBEGUN,
            bytes_received: 0,
            bytes_sent: 0,
            fresh: [0; 2],
            bulk: [Bulk::default(), Bulk::default()],
            pacing: bandwidth.map(pacing),
            tls,
            state: match ahead {
                true => State::Ahead,
                false => State::RELAYING,
            },
            client,
            backend,
            policy,
        }
    }

    /// From the client and to the client, so far.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.bytes_received, self.bytes_sent)
    }

    /// So many bytes have moved that they are worth being counted.
    pub(super) fn is_worth_counting(&self) -> bool {
        // A power of two: one comparison does for both.
        self.fresh[0] | self.fresh[1] >= COUNTED_BYTES
    }

    /// From the client and to the client, since the last time.
    pub(super) fn take_bytes(&mut self) -> (u64, u64) {
        let [received, sent] = std::mem::take(&mut self.fresh);
        (received.into(), sent.into())
    }

    /// The client and its TLS, for another relay.
    pub(super) fn into_client(self) -> (Socket, Option<Box<Session>>) {
        (self.client, self.tls.and_then(|tls| tls.into_client()))
    }

    fn begin(&mut self) {
        self.progress = NOTHING;
        self.client.belongs_to_this_task();
        self.backend.belongs_to_this_task();
        self.timer.set(self.check_at);
    }

    /// Does what can be done now; called whenever the task is woken.
    pub(super) fn poll(&mut self) -> Poll<Ending> {
        if self.progress == UNBEGUN {
            self.begin();
        }
        if let State::Ahead = self.state {
            // Looked at before the client's first byte is sent.
            if self.backend.has_ended() || !self.takes_more() {
                return Poll::Ready(Ending::STALE);
            }
            let client_speaks = self.client.held() > 0 || self.client.has_ended();
            if client_speaks || self.backend.held() > 0 || self.has_news() {
                self.state = State::RELAYING;
            }
        }
        match self.state {
            State::Ahead | State::Relaying { .. } => self.relay(),
            State::Flushing { .. } => self.flush(),
            State::Parting { reason, until } => self.part(reason, until),
        }
    }

    /// A backend that speaks TLS has not said by it that it has finished.
    fn takes_more(&mut self) -> bool {
        let tls = self.tls.as_mut();
        tls.is_none_or(|tls| tls.absorb(Side::Backend, &self.backend))
    }

    /// Something came with a TLS handshake.
    fn has_news(&self) -> bool {
        let tls = self.tls.as_ref();
        tls.is_some_and(|tls| tls.has_news(Side::Client) || tls.has_news(Side::Backend))
    }

    /// The ring of both sockets.
    pub(super) fn ring(&self) -> &Ring {
        self.client.ring()
    }

    /// Closes both sides.
    pub(super) fn close(self, ending: Ending) -> Outcome {
        if ending.reset {
            self.client.abort();
            self.backend.abort();
        }
        Outcome {
            reason: ending.reason,
            bytes_received: self.bytes_received,
            bytes_sent: self.bytes_sent,
            detail: self.tls.and_then(|tls| tls.detail()),
        }
    }

    fn relay(&mut self) -> Poll<Ending> {
        let mut blocked = false;
        for from in [Side::Client, Side::Backend] {
            let relayed = self.pump(from);
            blocked |= relayed.blocked;
            match relayed.flow {
                Flow::Open => {}
                Flow::Finished => self.pass_fin_on(from),
                Flow::Failed { errno, .. } => return self.start_flushing(from, errno),
                Flow::Broken(errno) => return self.start_flushing(from.other(), errno),
            }
        }
        let piped = self.bulk.iter().any(Bulk::has_pipe);
        if (blocked || piped) && self.check_at > self.ring().now() + BLOCKED_CHECK {
            self.check_again_in(BLOCKED_CHECK);
        }
        if self.pacing.is_some() {
            self.set_timer();
        }
        let first_fin = match self.state {
            State::Ahead => None,
            State::Relaying {
                first_fin: Some(Side::Client),
                both: true,
            } => return Ending::in_order(Reason::ClientClosed),
            State::Relaying {
                first_fin: Some(Side::Backend),
                both: true,
            } => return Ending::in_order(Reason::BackendClosed),
            State::Relaying { first_fin, .. } => first_fin,
            State::Flushing { .. } | State::Parting { .. } => return Poll::Pending,
        };
        self.check(first_fin, blocked)
    }

    /// Moves what `from` has sent, by the tier its direction is on.
    #[inline(always)]
    fn pump(&mut self, from: Side) -> Relayed {
        let now = self.ring().now();
        let (source, target) = match from {
            Side::Client => (&self.client, &self.backend),
            Side::Backend => (&self.backend, &self.client),
        };
        let relayed = match self.pacing.is_none() && self.tls.is_none() {
            true => self.bulk[from as usize].relay(source, target, now),
            false => self.pump_with_care(from),
        };
        if relayed.moved > 0 {
            self.active = now;
            self.fresh[from as usize] += relayed.moved;
            match from {
                Side::Client => self.bytes_received += u64::from(relayed.moved),
                Side::Backend => self.bytes_sent += u64::from(relayed.moved),
            }
        }
        relayed
    }

    /// The same where bandwidth is bounded or a side speaks TLS. Apart from its caller, which is small enough to
    /// be inlined without it.
    #[inline(never)]
    fn pump_with_care(&mut self, from: Side) -> Relayed {
        let now = self.ring().now();
        let sides = match from {
            Side::Client => (&self.client, &self.backend),
            Side::Backend => (&self.backend, &self.client),
        };
        let tls = &mut self.tls;
        let mut relay = |window| match tls {
            Some(tls) => tls.relay(from, sides, window),
            None => sides.0.relay_to(sides.1, window),
        };
        match &mut self.pacing {
            Some(pacing) => pacing.relay(from as usize, now, relay),
            None => relay(WINDOW),
        }
    }

    fn pass_fin_on(&mut self, from: Side) {
        let State::Relaying { first_fin, both } = &mut self.state else {
            return;
        };
        match *first_fin {
            None => *first_fin = Some(from),
            Some(first) if first != from && !*both => *both = true,
            Some(_) => return,
        }
        self.active = self.ring().now();
        self.sides(from).1.finish();
        self.check_again_in(self.policy.timeouts.half_close / 2);
    }

    fn start_flushing(&mut self, broken: Side, errno: i32) -> Poll<Ending> {
        self.progress = NOTHING;
        let fault = self.tls.as_ref().and_then(|tls| tls.fault(broken));
        self.state = State::Flushing {
            broken,
            reason: fault.unwrap_or_else(|| reason_of(broken, errno)),
            until: self.ring().now() + self.policy.timeouts.half_close,
            pause: 1,
        };
        self.flush()
    }

    /// RST would overtake bytes that the kernel still has, so it waits until the other side has
    /// acknowledged them. There is no completion for that: it is looked at after growing pauses.
    /// A slow reader may take as long as it likes, one that takes nothing `half_close`.
    fn flush(&mut self) -> Poll<Ending> {
        let State::Flushing {
            broken,
            reason,
            mut until,
            pause,
        } = self.state
        else {
            return Poll::Pending;
        };
        let flow = self.pump(broken).flow;
        let now = self.ring().now();
        let (source, target) = self.sides(broken);
        let told = self.tls.as_ref();
        let told = told.is_none_or(|tls| tls.has_told(broken, source));
        let progress = target.progress();
        let delivered = match flow {
            Flow::Open | Flow::Failed { drained: false, .. } => target.is_gone(),
            Flow::Finished | Flow::Failed { .. } => {
                target.unacknowledged() == 0 || target.is_gone()
            }
            Flow::Broken(_) => true,
        };
        if self.progress != progress {
            self.progress = progress;
            until = now + self.policy.timeouts.half_close;
        }
        if (delivered && told) || now >= until {
            return Poll::Ready(Ending {
                reason,
                reset: true,
            });
        }
        self.timer.set(now + Duration::from_millis(pause.into()));
        let pause = (pause * 2).min(MOST_PAUSE);
        self.state = State::Flushing {
            broken,
            reason,
            until,
            pause,
        };
        Poll::Pending
    }

    /// Looks at what no completion tells, when it is time to.
    fn check(&mut self, first_fin: Option<Side>, blocked: bool) -> Poll<Ending> {
        if self.ring().now() < self.check_at {
            return Poll::Pending;
        }
        if self.ring().now() - self.active >= BLOCKED_CHECK {
            self.bulk.iter_mut().for_each(Bulk::rest);
        }
        if blocked && let Some(side) = self.gone(first_fin) {
            return self.start_flushing(side, libc::ECONNRESET);
        }
        self.check_idle(first_fin.is_some(), blocked)
    }

    /// A side that was reset while nothing was being received from it. Not for a side that was sent
    /// FIN: it may be gone in order.
    fn gone(&self, first_fin: Option<Side>) -> Option<Side> {
        [Side::Client, Side::Backend]
            .into_iter()
            .find(|side| first_fin != Some(side.other()) && self.sides(*side).0.is_gone())
    }

    /// Ends the session when no byte moved for too long. What the kernel has taken may trickle out
    /// of it without a completion: what was acknowledged tells, looked at twice per timeout or more
    /// often. So a stalled session ends after one to one and a half timeouts, a silent one after
    /// exactly one.
    fn check_idle(&mut self, half_closed: bool, blocked: bool) -> Poll<Ending> {
        let now = self.ring().now();
        let waiting = self.client.unacknowledged() > 0 || self.backend.unacknowledged() > 0;
        // Also what is incomplete of a record.
        let held = self.client.held() + self.backend.held() > 0
            || self.bulk.iter().any(|bulk| !bulk.is_empty());
        let stuck = waiting || held || self.client.is_sending() || self.backend.is_sending();
        if stuck || self.progress != NOTHING {
            let progress = self.client.progress().wrapping_add(self.backend.progress());
            if self.progress != progress {
                self.active = now;
            }
            self.progress = if stuck { progress } else { NOTHING };
        }
        let resting = self.pacing.as_ref();
        if let Some(until) = resting.and_then(|pacing| pacing.rests_until()) {
            // Its silence is of our making.
            self.active = self.active.max(until);
        }
        let (timeout, reason) = match half_closed {
            true => (self.policy.timeouts.half_close, Reason::HalfClose),
            false => (self.policy.timeouts.idle, Reason::Idle),
        };
        let left = (self.active + timeout) - now;
        if left.is_zero() {
            let reset = half_closed || stuck;
            if let (Some(tls), false) = (&mut self.tls, reset) {
                tls.part(&self.client, &self.backend);
                return self.part(reason, now + PARTING);
            }
            return Poll::Ready(Ending { reason, reset });
        }
        let piped = self.bulk.iter().any(Bulk::has_pipe);
        let most = if blocked || piped {
            BLOCKED_CHECK.min(timeout / 2)
        } else {
            timeout / 2
        };
        self.check_again_in(left.min(most));
        Poll::Pending
    }

    /// Waits until the kernel has what was said at the end.
    fn part(&mut self, reason: Reason, until: Instant) -> Poll<Ending> {
        let said = !self.client.is_sending() && !self.backend.is_sending();
        if said || self.ring().now() >= until {
            return Ending::in_order(reason);
        }
        self.state = State::Parting { reason, until };
        self.client.wake_when_sent();
        self.backend.wake_when_sent();
        self.timer.set(until);
        Poll::Pending
    }

    fn check_again_in(&mut self, pause: Duration) {
        self.check_at = self.ring().now() + pause;
        self.set_timer();
    }

    /// For the next look, or for a direction that rests before that.
    fn set_timer(&self) {
        let pacing = self.pacing.as_ref();
        let resume = pacing.and_then(|pacing| pacing.resume_at());
        let first = resume.map_or(self.check_at, |resume| resume.min(self.check_at));
        self.timer.set(first);
    }

    /// The source and the target of the direction that begins at `from`.
    fn sides(&self, from: Side) -> (&Socket, &Socket) {
        match from {
            Side::Client => (&self.client, &self.backend),
            Side::Backend => (&self.backend, &self.client),
        }
    }
}

impl Ending {
    /// The worker has panicked.
    pub(super) const LOST: Self = Self {
        reason: Reason::WorkerPanicked,
        reset: true,
    };
    /// The worker ends its sessions.
    pub(super) const DRAINED: Self = Self {
        reason: Reason::Drained,
        reset: true,
    };

    /// Nothing was moved, and the backend had closed before: the client is for another backend.
    pub(super) const STALE: Self = Self {
        reason: Reason::BackendClosed,
        reset: true,
    };

    fn in_order(reason: Reason) -> Poll<Self> {
        Poll::Ready(Self {
            reason,
            reset: false,
        })
    }
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Client => Self::Backend,
            Self::Backend => Self::Client,
        }
    }
}

fn reason_of(side: Side, errno: i32) -> Reason {
    let reset = matches!(errno, libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED);
    match (side, reset) {
        (Side::Client, true) => Reason::ClientReset,
        (Side::Client, false) => Reason::ClientLost,
        (Side::Backend, true) => Reason::BackendReset,
        (Side::Backend, false) => Reason::BackendLost,
    }
}
