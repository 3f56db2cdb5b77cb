//! The network between simulated machines: connections whose bytes come late, or not at all.
//!
//! The model is TCP as sheep see it. What was written comes in order, after a delay of its own per piece, so
//! that connections overtake each other. Over a cut link nothing passes, in flight or new; pieces wait for it
//! to heal, and after [`SILENCE`] an end gives up with a timeout. A process that ends closes its connections,
//! as the kernel does for it; a machine that loses its power says nothing, and when it is back it resets what
//! it does not know. A machine whose process stands still goes on acknowledging.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::peer::{Accept, Net, Stream};

/// A connection that is not heard of for this long is given up, as `peer/net.rs` tells the kernel to.
const SILENCE: Duration = Duration::from_secs(4);
/// How often an attempt to connect is repeated.
const SYN_AGAIN: Duration = Duration::from_millis(200);
/// Bytes under way after which a writer waits.
const WINDOW: usize = 256 << 10;

/// The machine's number in the simulation.
pub(super) type Machine = usize;

/// The mesh of machine `m` listens here, its admin API one port below.
pub(super) fn address(m: Machine, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, m as u8 + 1], port))
}

fn machine_at(address: SocketAddr) -> Machine {
    match address.ip() {
        std::net::IpAddr::V4(ip) => usize::from(ip.octets()[3]) - 1,
        std::net::IpAddr::V6(_) => usize::MAX,
    }
}

struct Piece {
    due: Duration,
    bytes: Vec<u8>,
}

/// One side of a connection.
struct End {
    machine: Machine,
    /// The machine's life in which the connection was made.
    life: u64,
    inbox: VecDeque<u8>,
    /// What this end has sent and the other has not got.
    sent: VecDeque<Piece>,
    sent_bytes: usize,
    /// Nothing more will be sent, once what is under way has arrived.
    closed: Option<Duration>,
    /// Nothing more will be read here.
    deaf: bool,
    eof: bool,
    error: Option<io::ErrorKind>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    silent_since: Option<Duration>,
}

impl End {
    fn new(machine: Machine, life: u64) -> Self {
        Self {
            machine,
            life,
            inbox: VecDeque::new(),
            sent: VecDeque::new(),
            sent_bytes: 0,
            closed: None,
            deaf: false,
            eof: false,
            error: None,
            reader: None,
            writer: None,
            silent_since: None,
        }
    }

    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }

    fn fail(&mut self, error: io::ErrorKind) {
        if self.error.is_none() {
            self.error = Some(error);
            self.sent.clear();
            self.sent_bytes = 0;
            self.wake();
        }
    }

    fn is_over(&self) -> bool {
        self.error.is_some() || (self.deaf && self.closed.is_some() && self.sent.is_empty())
    }
}

struct Attempt {
    from: Machine,
    to: SocketAddr,
    life: u64,
    due: Duration,
    /// Set once there is an answer, and that has arrived at `answer_due`.
    answer: Option<Result<u64, io::ErrorKind>>,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Port {
    waiting: VecDeque<u64>,
    waker: Option<Waker>,
}

struct State {
    now: Duration,
    rng: StdRng,
    /// Longest delay of a piece.
    delay: Duration,
    cut: Vec<Vec<bool>>,
    /// `None` while a machine has no power, else which of its lives this is.
    lives: Vec<Option<u64>>,
    next_life: u64,
    ports: BTreeMap<SocketAddr, Port>,
    connections: BTreeMap<u64, [End; 2]>,
    attempts: BTreeMap<u64, Attempt>,
    next: u64,
    /// A running checksum of all that was delivered, and when.
    trace: u32,
    delivered: u64,
}

/// The network; clones are the same one.
#[derive(Clone)]
pub(super) struct Wires(Arc<Mutex<State>>);

impl Wires {
    pub(super) fn new(machines: usize, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            now: Duration::ZERO,
            rng: StdRng::seed_from_u64(seed),
            delay: Duration::from_millis(1),
            cut: vec![vec![false; machines]; machines],
            lives: (0..machines as u64).map(Some).collect(),
            next_life: machines as u64,
            ports: BTreeMap::new(),
            connections: BTreeMap::new(),
            attempts: BTreeMap::new(),
            next: 0,
            trace: 0,
            delivered: 0,
        })))
    }

    /// The machine's own access to the network.
    pub(super) fn card(&self, machine: Machine) -> Card {
        Card { wires: self.clone(), machine }
    }

    /// How long a piece is under way at most.
    pub(super) fn set_delay(&self, longest: Duration) {
        self.0.lock().delay = longest;
    }

    /// Cuts or heals the way from one machine to another.
    pub(super) fn set_cut(&self, from: Machine, to: Machine, cut: bool) {
        self.0.lock().cut[from][to] = cut;
    }

    /// Heals everything.
    pub(super) fn heal(&self) {
        self.0.lock().cut.iter_mut().flatten().for_each(|c| *c = false);
    }

    /// A machine loses its power: nobody is told.
    pub(super) fn power_off(&self, machine: Machine) {
        let mut state = self.0.lock();
        state.lives[machine] = None;
        state.ports.retain(|address, _| machine_at(*address) != machine);
        state.attempts.retain(|_, a| a.from != machine);
        for end in state.connections.values_mut().flatten().filter(|e| e.machine == machine) {
            end.fail(io::ErrorKind::ConnectionReset);
        }
    }

    /// A machine has its power back.
    pub(super) fn power_on(&self, machine: Machine) {
        let mut state = self.0.lock();
        state.next_life += 1;
        state.lives[machine] = Some(state.next_life);
    }

    /// What was delivered so far, as a checksum, and how many pieces.
    pub(super) fn trace(&self) -> (u32, u64) {
        let state = self.0.lock();
        (state.trace, state.delivered)
    }

    /// Lets time pass: whatever is due arrives.
    pub(super) fn step(&self, now: Duration) {
        let state = &mut *self.0.lock();
        state.now = now;
        state.connect();
        let mut connections = std::mem::take(&mut state.connections);
        connections.retain(|number, ends| state.carry(*number, ends));
        state.connections = connections;
    }
}

impl State {
    fn due(&mut self) -> Duration {
        let longest = self.delay.as_micros() as u64;
        self.now + Duration::from_micros(self.rng.random_range(longest / 10..=longest))
    }

    fn passes(&self, from: Machine, to: Machine) -> bool {
        !self.cut[from][to]
    }

    fn connect(&mut self) {
        let due: Vec<u64> =
            self.attempts.iter().filter(|(_, a)| a.due <= self.now).map(|(number, _)| *number).collect();
        for number in due {
            let Some(mut attempt) = self.attempts.remove(&number) else { continue };
            let (from, to) = (attempt.from, machine_at(attempt.to));
            if attempt.answer.is_some() {
                attempt.waker.take().into_iter().for_each(Waker::wake);
                attempt.due = Duration::MAX;
                self.attempts.insert(number, attempt);
                continue;
            }
            let there = self.lives.get(to).copied().flatten();
            match there.filter(|_| self.passes(from, to) && self.passes(to, from)) {
                None => attempt.due = self.now + SYN_AGAIN,
                Some(life) => {
                    attempt.answer = Some(match self.ports.get_mut(&attempt.to) {
                        None => Err(io::ErrorKind::ConnectionRefused),
                        Some(port) => {
                            port.waiting.push_back(number);
                            port.waker.take().into_iter().for_each(Waker::wake);
                            let ends = [End::new(from, attempt.life), End::new(to, life)];
                            self.connections.insert(number, ends);
                            Ok(number)
                        }
                    });
                    attempt.due = self.due();
                }
            }
            self.attempts.insert(number, attempt);
        }
    }

    /// What is due on a connection arrives. Whether there still is one.
    fn carry(&mut self, number: u64, ends: &mut [End; 2]) -> bool {
        for side in [0, 1] {
            self.carry_from(number, ends, side);
        }
        !ends.iter().all(End::is_over)
    }

    /// What `side` has sent arrives at the other, or `side` gives up.
    fn carry_from(&mut self, number: u64, ends: &mut [End; 2], side: usize) {
        let (from, to) = (ends[side].machine, ends[1 - side].machine);
        let open = self.passes(from, to) && self.passes(to, from);
        let powered = self.lives[to].is_some();
        let known = self.lives[to] == Some(ends[1 - side].life);
        if !open || !powered {
            let since = *ends[side].silent_since.get_or_insert(self.now);
            if self.now - since > SILENCE {
                ends[side].fail(io::ErrorKind::TimedOut);
            }
        } else {
            ends[side].silent_since = None;
            let gone = !known || ends[1 - side].error.is_some();
            // Told at the next piece, or by the kernel's probes.
            if gone && ends[side].error.is_none() && self.rng.random_bool(0.2) {
                ends[side].fail(io::ErrorKind::ConnectionReset);
            }
        }
        if !self.passes(from, to) || !known || self.lives[from] != Some(ends[side].life) {
            return;
        }
        let [first, second] = ends;
        let (sender, receiver) = if side == 0 { (first, second) } else { (second, first) };
        let mut arrived = false;
        while let Some(piece) = sender.sent.front().filter(|p| p.due <= self.now) {
            arrived = true;
            let when = crc32c::crc32c_append(self.trace, &(self.now.as_micros() as u64).to_le_bytes());
            let where_to = crc32c::crc32c_append(when, &number.to_le_bytes());
            self.trace = crc32c::crc32c_append(where_to, &piece.bytes);
            self.delivered += 1;
            if let Some(piece) = sender.sent.pop_front() {
                sender.sent_bytes -= piece.bytes.len();
                if receiver.deaf {
                    sender.fail(io::ErrorKind::ConnectionReset);
                } else {
                    receiver.inbox.extend(piece.bytes);
                }
            }
        }
        if arrived {
            sender.writer.take().into_iter().for_each(Waker::wake);
        }
        let finished = sender.sent.is_empty() && sender.closed.is_some_and(|due| due <= self.now);
        if (finished && !receiver.eof) || arrived {
            receiver.eof |= finished;
            receiver.reader.take().into_iter().for_each(Waker::wake);
        }
    }
}

/// One machine's access to the network.
#[derive(Clone)]
pub(super) struct Card {
    wires: Wires,
    machine: Machine,
}

impl Card {
    fn stream(&self, number: u64, side: usize) -> Stream {
        let half = || Half { wires: self.wires.clone(), number, side };
        Stream::new(Reading(half()), Writing(half()))
    }

    /// Both directions of a new connection, for protocols that are not the mesh's.
    pub(super) async fn dial(&self, address: SocketAddr) -> io::Result<(Reading, Writing)> {
        let number = self.attempt(address).await?;
        let half = || Half { wires: self.wires.clone(), number, side: 0 };
        Ok((Reading(half()), Writing(half())))
    }

    async fn attempt(&self, address: SocketAddr) -> io::Result<u64> {
        let number = {
            let mut state = self.wires.0.lock();
            let Some(life) = state.lives[self.machine] else {
                return Err(io::ErrorKind::NetworkUnreachable.into());
            };
            state.next += 1;
            let (number, due) = (state.next, state.due());
            let attempt = Attempt { from: self.machine, to: address, life, due, answer: None, waker: None };
            state.attempts.insert(number, attempt);
            number
        };
        let mut guard = Dialling { wires: self.wires.clone(), number, done: false };
        let answer = std::future::poll_fn(|cx| {
            let mut state = self.wires.0.lock();
            let Some(attempt) = state.attempts.get_mut(&number) else {
                return Poll::Ready(Err(io::ErrorKind::NetworkUnreachable));
            };
            match attempt.answer {
                Some(answer) if attempt.due == Duration::MAX => Poll::Ready(answer),
                _ => {
                    attempt.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
        guard.done = answer.is_ok();
        Ok(answer?)
    }

    /// Listens for what [`Card::dial`] dials.
    pub(super) fn serve(&self, address: SocketAddr) -> Serving {
        self.wires.0.lock().ports.insert(address, Port::default());
        Serving { card: self.clone(), address }
    }
}

/// Takes back an attempt that is abandoned.
struct Dialling {
    wires: Wires,
    number: u64,
    done: bool,
}

impl Drop for Dialling {
    fn drop(&mut self) {
        let mut state = self.wires.0.lock();
        state.attempts.remove(&self.number);
        if !self.done
            && let Some([end, _]) = state.connections.get_mut(&self.number)
        {
            end.fail(io::ErrorKind::ConnectionReset);
        }
    }
}

/// A port that is listened on.
pub(super) struct Serving {
    card: Card,
    address: SocketAddr,
}

impl Serving {
    async fn next(&self) -> (u64, SocketAddr) {
        std::future::poll_fn(|cx| {
            let mut state = self.card.wires.0.lock();
            let Some(port) = state.ports.get_mut(&self.address) else { return Poll::Pending };
            match port.waiting.pop_front() {
                Some(number) => {
                    let from = state.connections.get(&number).map_or(0, |ends| ends[0].machine);
                    Poll::Ready((number, address(from, 40_000)))
                }
                None => {
                    port.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The next connection, and where it comes from.
    pub(super) async fn take(&self) -> (Reading, Writing, SocketAddr) {
        let (number, from) = self.next().await;
        let half = || Half { wires: self.card.wires.clone(), number, side: 1 };
        (Reading(half()), Writing(half()), from)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut state = self.card.wires.0.lock();
        let Some(port) = state.ports.remove(&self.address) else { return };
        for number in port.waiting {
            if let Some([_, end]) = state.connections.get_mut(&number) {
                end.fail(io::ErrorKind::ConnectionReset);
            }
        }
    }
}

#[async_trait]
impl Net for Card {
    async fn connect(&self, address: SocketAddr) -> io::Result<Stream> {
        Ok(self.stream(self.attempt(address).await?, 0))
    }

    async fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Accept>> {
        Ok(Box::new(self.serve(address)))
    }
}

#[async_trait]
impl Accept for Serving {
    async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)> {
        let (number, from) = self.next().await;
        Ok((self.card.stream(number, 1), from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

struct Half {
    wires: Wires,
    number: u64,
    side: usize,
}

impl Half {
    fn with<T>(&self, f: impl FnOnce(&mut End) -> T) -> Option<T> {
        let mut state = self.wires.0.lock();
        state.connections.get_mut(&self.number).map(|ends| f(&mut ends[self.side]))
    }
}

/// The reading half of a connection.
pub(super) struct Reading(Half);

/// The writing half of a connection.
pub(super) struct Writing(Half);

impl AsyncRead for Reading {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = self.0.with(|end| {
            if !end.inbox.is_empty() {
                let len = end.inbox.len().min(buf.remaining());
                let (first, second) = end.inbox.as_slices();
                let split = len.min(first.len());
                buf.put_slice(&first[..split]);
                buf.put_slice(&second[..len - split]);
                end.inbox.drain(..len);
                return Poll::Ready(Ok(()));
            }
            match end.error {
                Some(error) => Poll::Ready(Err(error.into())),
                None if end.eof => Poll::Ready(Ok(())),
                None => {
                    end.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        });
        read.unwrap_or(Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())))
    }
}

impl AsyncWrite for Writing {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.0.wires.0.lock();
        let due = state.due();
        let Some(end) = state.connections.get_mut(&self.0.number).map(|ends| &mut ends[self.0.side]) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        if let Some(error) = end.error {
            return Poll::Ready(Err(error.into()));
        }
        if end.closed.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if end.sent_bytes >= WINDOW {
            end.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let due = end.sent.back().map_or(due, |last| last.due.max(due));
        end.sent_bytes += bytes.len();
        end.sent.push_back(Piece { due, bytes: bytes.to_vec() });
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.close();
        Poll::Ready(Ok(()))
    }
}

impl Half {
    fn close(&self) {
        let mut state = self.wires.0.lock();
        let due = state.due();
        if let Some(ends) = state.connections.get_mut(&self.number) {
            ends[self.side].closed.get_or_insert(due);
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let lost = self.0.with(|end| {
            end.deaf = true;
            !end.inbox.is_empty()
        });
        // What was sent to somebody who does not read it is answered with a reset.
        if lost == Some(true) {
            let mut state = self.0.wires.0.lock();
            if let Some(ends) = state.connections.get_mut(&self.0.number) {
                ends[self.0.side].inbox.clear();
                ends[self.0.side].fail(io::ErrorKind::ConnectionReset);
            }
        }
    }
}
