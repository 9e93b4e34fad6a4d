//! An upgrade as a process lives through it, on either side: what goes along, and in which order things
//! happen, so that there is always somebody who accepts and nothing is counted twice.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::mpsc::Sender;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::bindings::Offered;
use super::parts::Drain;
use super::process::Process;
use super::reload::Answer;
use super::socket::{self, Reply, Upgraded};
use super::upgrade::sessions::{self, Giver};
use super::upgrade::{Failure, Launch, Link, Offer, Successor, hand_over};
use crate::proxy::{BindingId, Image, Left, Message, Shared, Totals};
use crate::ring;

/// How long a new process may take until it serves.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an old process may take to say what it has counted while it handed over: it does so at once.
const CATCHING_UP: Duration = Duration::from_secs(1);

/// What the old process tells the new one when that is ready.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct State {
    pub(super) shared: Image,
    pub(super) parts: Vec<Drain>,
    /// What was taken over from each older process, in the order of their links.
    pub(super) ancestors: Vec<Totals>,
}

/// The old side: a new process on its way.
pub(super) struct Succession {
    launch: Option<Launch>,
    under_way: Option<UnderWay>,
}

struct UnderWay {
    task: Pin<Box<dyn Future<Output = Result<Successor, Failure>>>>,
    /// Bindings in the order of the offer.
    offered: Vec<BindingId>,
    /// Links to older processes; nobody reads them meanwhile.
    links: Rc<Vec<Link>>,
    ancestors: Vec<Totals>,
    agreed: Rc<RefCell<Agreed>>,
    answer: Option<Answer>,
    /// By which sessions of datagrams go to the new process.
    sessions: Option<Giver>,
    /// The number of the admin endpoint's socket in the offer.
    admin: Option<usize>,
}

/// What holds from the moment that the state went over.
#[derive(Default)]
struct Agreed {
    /// Bindings that the new process goes on with, by their number in the offer.
    kept: Vec<usize>,
    /// What the new process knows to be counted.
    base: Totals,
}

/// How an upgrade ended.
pub(super) struct Outcome {
    result: Result<Successor, Failure>,
    under_way: UnderWay,
}

/// A new process that serves.
pub(super) struct Heir {
    pub(super) successor: Successor,
    pub(super) base: Totals,
    /// Hands sessions of datagrams over, as long as workers have any.
    pub(super) giver: Option<JoinHandle<()>>,
    /// It goes on with the admin endpoint's socket.
    pub(super) admin_kept: bool,
}

impl Succession {
    /// Nothing is under way. Without `launch` nothing can be.
    pub(super) fn new(launch: Option<Launch>) -> Self {
        Self {
            launch,
            under_way: None,
        }
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Waits for the end of what is under way. May be dropped and called again.
    pub(super) async fn outcome(&mut self) -> Outcome {
        let result = match &mut self.under_way {
            Some(under_way) => under_way.task.as_mut().await,
            None => std::future::pending().await,
        };
        let under_way = self.under_way.take().expect("it has just ended");
        Outcome { result, under_way }
    }
}

impl UnderWay {
    /// Where workers leave the sessions of datagrams for the new process.
    fn give_sessions(&mut self) -> Option<(Sender<Left>, JoinHandle<()>)> {
        let giver = self.sessions.take()?;
        let offered = self.offered.clone();
        let number = move |left: &Left| offered.iter().position(|id| *id == left.binding);
        let started = giver.start(number);
        started
            .inspect_err(|error| {
                tracing::error!(%error, "no thread to hand sessions of datagrams over");
            })
            .ok()
    }

    /// The links to older processes, with what is known of each.
    fn ancestors(self) -> Ancestors {
        drop(self.task);
        // Nobody else has them now.
        let links = Rc::try_unwrap(self.links).unwrap_or_default();
        Ancestors {
            list: links.into_iter().zip(self.ancestors).collect(),
            behind_until: None,
        }
    }
}

impl Process {
    /// Starts a new process, which is to take over.
    pub(super) fn begin_upgrade(&mut self, answer: Option<Answer>) {
        let refused = match &self.succession.launch {
            None => "this process was started without a configuration file",
            Some(_) if self.succession.is_under_way() => "one is under way already",
            Some(_) if self.reload.is_under_way() => "a reload is under way",
            Some(launch) => {
                let launch = launch.clone();
                return self.begin_succession(launch, answer);
            }
        };
        refuse(answer, refused);
    }

    fn begin_succession(&mut self, launch: Launch, answer: Option<Answer>) {
        let offered = self.bindings.offer();
        let offered = offered.and_then(|offered| Ok((offered, self.admin.offer()?)));
        let (offered, admin) = match offered {
            Ok(offered) => offered,
            Err(error) => return refuse(answer, &format!("no descriptor left: {error}")),
        };
        let Offered {
            ids,
            mut bindings,
            mut sockets,
        } = offered;
        let admin = admin.map(|(offered, socket)| {
            bindings.push(offered);
            sockets.push(socket);
            bindings.len() - 1
        });
        let datagrams = bindings.iter().any(|binding| binding.datagrams);
        let sessions = match datagrams.then(sessions::link).transpose() {
            Ok(sessions) => sessions,
            Err(error) => return refuse(answer, &format!("no descriptor left: {error}")),
        };
        let (sessions, theirs) = sessions.unzip();
        sockets.extend(theirs);
        tracing::info!(executable = %launch.executable().display(), "upgrading");
        self.notifier.reloading();
        let drained = self.parts.listeners();
        let offer = Offer {
            seed: self.shared.seed,
            bindings,
            drained: drained.iter().map(ToString::to_string).collect(),
            control_socket: self.socket.as_ref().map(|socket| socket.path().to_owned()),
            sessions: sessions.is_some(),
        };
        let (links, ancestors): (Vec<_>, Vec<_>) = self.ancestors.take().into_iter().unzip();
        let links = Rc::new(links);
        let agreed = Rc::new(RefCell::new(Agreed::default()));
        let state = self.state_for(&ancestors, &agreed);
        let given = links.clone();
        let task =
            async move { hand_over(&launch, offer, &sockets, &given, state, PATIENCE).await };
        self.succession.under_way = Some(UnderWay {
            task: Box::pin(task),
            offered: ids,
            links,
            ancestors,
            agreed,
            answer,
            sessions,
            admin,
        });
    }

    /// Ends an upgrade that is under way, because this process is to end: the new process is killed. But if
    /// it serves already, that is the outcome.
    pub(super) async fn give_up_upgrade(&mut self) -> Option<Outcome> {
        if !self.succession.is_under_way() {
            return None;
        }
        let ended = {
            let mut outcome = pin!(self.succession.outcome());
            poll_fn(|context| Poll::Ready(outcome.as_mut().poll(context))).await
        };
        if let Poll::Ready(outcome) = ended {
            return Some(outcome);
        }
        let mut under_way = self.succession.under_way.take()?;
        tracing::warn!("upgrade given up: this process is to end");
        reply(
            under_way.answer.take(),
            Reply::failed("the process is to end"),
        );
        self.ancestors = under_way.ancestors();
        self.mend_socket();
        None
    }

    /// The new process may have failed after it had taken the control socket's path.
    fn mend_socket(&mut self) {
        let own = self.socket.as_ref();
        if own.is_some_and(|socket| !socket.is_in_place()) {
            self.socket = self.control_socket(None);
        }
    }

    /// What makes the state, once the new process is ready.
    fn state_for(
        &self,
        ancestors: &[Totals],
        agreed: &Rc<RefCell<Agreed>>,
    ) -> impl FnOnce(&super::upgrade::Ready) -> Value + 'static {
        let (shared, agreed) = (self.shared.clone(), agreed.clone());
        let (parts, ancestors) = (self.parts.list().to_vec(), ancestors.to_vec());
        move |ready| {
            let image = shared.image(ring::now());
            agreed.replace(Agreed {
                kept: ready.kept.clone(),
                base: image.totals(),
            });
            let state = State {
                shared: image,
                parts,
                ancestors,
            };
            serde_json::to_value(state).unwrap_or_default()
        }
    }

    /// Tells what came of it. If a new process serves, this one is to drain.
    pub(super) fn end_upgrade(&mut self, outcome: Outcome) -> Option<Heir> {
        let Outcome {
            result,
            mut under_way,
        } = outcome;
        let answer = under_way.answer.take();
        match result {
            Ok(successor) => {
                let pid = successor.pid;
                tracing::info!(pid, "upgraded: the new process serves");
                self.notifier.main_pid(pid, "handed over");
                reply(
                    answer,
                    Reply::Done(socket::Outcome::Upgraded(Upgraded { pid })),
                );
                let Agreed { kept, base } = under_way.agreed.take();
                let admin_kept = under_way.admin.is_some_and(|it| kept.contains(&it));
                let offered = |number: &usize| under_way.offered.get(*number).copied();
                let kept: Vec<_> = kept.iter().filter_map(offered).collect();
                let (sessions, giver) = under_way.give_sessions().unzip();
                let workers = &self.workers;
                self.bindings.hand_over(&kept, sessions.as_ref(), workers);
                Some(Heir {
                    successor,
                    base,
                    giver,
                    admin_kept,
                })
            }
            Err(failure) => {
                self.ancestors = under_way.ancestors();
                self.mend_socket();
                // The new process may have begun to accept.
                self.workers.post(|| Message::LookAgain);
                let summary = self.summary();
                self.notifier.ready(&summary);
                tracing::error!("upgrade failed, this process goes on: {failure}");
                reply(answer, Reply::failed(failure));
                None
            }
        }
    }
}

fn refuse(answer: Option<Answer>, why: &str) {
    tracing::warn!("upgrade refused: {why}");
    reply(answer, Reply::failed(why));
}

fn reply(answer: Option<Answer>, reply: Reply) {
    if let Some(answer) = answer {
        // Whoever asked may have gone.
        let _ = answer.send(reply);
    }
}

/// The new side: older processes that still drain, and what was taken over from each.
#[derive(Default)]
pub(super) struct Ancestors {
    list: Vec<(Link, Totals)>,
    /// The process that handed over has counted since it told its state, and is about to say so. Whoever
    /// has asked it knows more than this one does; until then.
    behind_until: Option<tokio::time::Instant>,
}

impl Ancestors {
    /// The link of the process that handed over, then those of older ones, of which it has `known` so much.
    pub(super) fn new(links: Vec<Link>, known: Vec<Totals>) -> Self {
        let known = std::iter::once(Totals::default())
            .chain(known)
            .chain(std::iter::repeat_with(Totals::default));
        Self {
            list: links.into_iter().zip(known).collect(),
            behind_until: Some(tokio::time::Instant::now() + CATCHING_UP),
        }
    }

    /// Until when nobody is to be told counts; `None` = they may be.
    pub(super) fn behind_until(&self) -> Option<tokio::time::Instant> {
        self.behind_until
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    fn take(&mut self) -> Vec<(Link, Totals)> {
        std::mem::take(&mut self.list)
    }

    /// Waits until one of them has told what it has counted since it handed over, or has ended. May be
    /// dropped and called again.
    pub(super) async fn next(&mut self) -> (usize, Option<Value>) {
        let links = self.list.iter_mut();
        let mut waiting: Vec<_> = links
            .map(|(link, _)| Box::pin(link.next_counted()))
            .collect();
        poll_fn(|context| {
            for (number, link) in waiting.iter_mut().enumerate() {
                if let Poll::Ready(told) = link.as_mut().poll(context) {
                    let told = told.unwrap_or_else(|error| {
                        tracing::warn!(%error, "an older process can't be understood");
                        None
                    });
                    return Poll::Ready((number, told));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Takes over what the process has counted beyond what was known; `None` = it has ended.
    pub(super) fn counted(&mut self, number: usize, told: Option<Value>, shared: &Shared) {
        if number == 0 {
            // The first one is the process that handed over.
            self.behind_until = None;
        }
        let Some(told) = told else {
            self.list.remove(number);
            tracing::info!(left = self.list.len(), "an older process has ended");
            return;
        };
        let known = &mut self.list[number].1;
        match serde_json::from_value::<Totals>(told) {
            Ok(totals) => {
                shared.add(&totals.since(known));
                *known = totals;
            }
            Err(error) => tracing::warn!(%error, "counts of an older process can't be read"),
        }
    }
}
