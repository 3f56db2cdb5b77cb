//! Who has a VDI open, and which requests of other gateways may come again (rules 9 and 10). Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use parking_lot::Mutex;
use tokio::sync::watch;
use wire::id::Session;
use wire::peer::{Connection, RequestId};

use super::owner::IoFailure;

/// The result of a request, once it is there.
pub(crate) type Outcome = Result<(), IoFailure>;

/// What to do with a request that has come from another gateway.
pub(crate) enum Arrival {
    /// It is new: do it, and report what came of it.
    New(watch::Sender<Option<Outcome>>),
    /// It has come before: wait for what comes of that.
    Again(watch::Receiver<Option<Outcome>>),
    /// Its gateway has called it answered.
    Late,
}

struct Known {
    outcome: watch::Receiver<Option<Outcome>>,
    numbers: Vec<u64>,
}

#[derive(Default)]
struct Gateway {
    answered: u64,
    requests: BTreeMap<u64, Known>,
}

impl Gateway {
    fn note_answered(&mut self, below: u64, freed: &mut Vec<u64>) {
        if below > self.answered {
            self.answered = below;
            let open = self.requests.split_off(&below);
            let over = std::mem::replace(&mut self.requests, open);
            freed.extend(over.into_values().flat_map(|r| r.numbers));
        }
    }
}

#[derive(Default)]
struct Table {
    connections: HashMap<(Session, u64), Connection>,
    /// Connections that have ended with something under way, until that has ended too.
    ending: HashMap<(Session, u64), Connection>,
    in_flight: HashMap<(Session, u64), u32>,
    /// The highest attach generation of each client that was opened here: the log may not have told of it yet.
    attached: HashMap<String, u64>,
    /// Connections whose right was withdrawn: numbers are never used twice, so they stay here for as long as
    /// their gateway lives.
    revoked: HashSet<(Session, u64)>,
    /// By process: node and the start counter with which it began.
    gateways: HashMap<Session, Gateway>,
    /// Writes that have ended of requests of this node's own gateway which have not.
    own: HashMap<u64, Vec<u64>>,
}

impl Table {
    fn end(&mut self, key: (Session, u64)) {
        if let Some(connection) = self.connections.remove(&key)
            && self.in_flight.contains_key(&key)
        {
            self.ending.insert(key, connection);
        }
    }

    /// Connections on which something may still be under way.
    fn busy(&self) -> impl Iterator<Item = &Connection> {
        let all = self.connections.iter().chain(&self.ending);
        all.filter(|(key, _)| self.in_flight.contains_key(key)).map(|(_, connection)| connection)
    }
}

/// Connections and requests at an owner.
#[derive(Default)]
pub(crate) struct Clients {
    table: Mutex<Table>,
    ended: tokio::sync::Notify,
}

/// A request under way on a connection; dropping it ends it.
pub(crate) struct InFlight<'a> {
    clients: &'a Clients,
    key: (Session, u64),
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut table = self.clients.table.lock();
        if let Some(count) = table.in_flight.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                table.in_flight.remove(&self.key);
                table.ending.remove(&self.key);
                self.clients.ended.notify_waiters();
            }
        }
    }
}

impl Clients {
    /// A connection opens, or makes itself known to a new owner. Refused if its right was withdrawn.
    pub(crate) fn open(&self, connection: Connection) -> Result<(), IoFailure> {
        let key = (connection.gateway.into(), connection.connection);
        let mut table = self.table.lock();
        let newest = table.attached.get(&connection.attach_client);
        if table.revoked.contains(&key) || newest.is_some_and(|newest| *newest > connection.attach_generation)
        {
            return Err(IoFailure::Fenced);
        }
        table.connections.insert(key, connection);
        Ok(())
    }

    /// A client attaches with a generation: from the first moment on nothing of its lower ones begins, and on
    /// return nothing of them is under way. Cancel-safe: what was withdrawn stays so.
    pub(crate) async fn supersede(&self, client: &str, generation: u64) {
        {
            let mut table = self.table.lock();
            let newest = table.attached.entry(client.to_owned()).or_default();
            *newest = generation.max(*newest);
        }
        let lower = |c: &Connection| c.attach_client == client && c.attach_generation < generation;
        self.revoke(lower).await;
        self.idle(lower).await;
    }

    /// Withdraws the right of connections, and returns them once nothing is under way on them. From the
    /// first moment on no new request of theirs begins. Cancel-safe: what was withdrawn stays so.
    pub(crate) async fn revoke(&self, which: impl Fn(&Connection) -> bool) -> Vec<Connection> {
        let gone: HashMap<(Session, u64), Connection> = {
            let mut table = self.table.lock();
            let gone: HashMap<_, _> = table
                .connections
                .iter()
                .filter(|(_, c)| which(c))
                .map(|(key, connection)| (*key, connection.clone()))
                .collect();
            table.revoked.extend(gone.keys());
            gone
        };
        self.idle(|c| gone.contains_key(&(c.gateway.into(), c.connection))).await;
        self.table.lock().connections.retain(|key, _| !gone.contains_key(key));
        gone.into_values().collect()
    }

    /// A connection has ended.
    pub(crate) fn close(&self, gateway: Session, connection: u64) {
        self.table.lock().end((gateway, connection));
    }

    /// Connections of sessions that are over go with them, and requests of processes that are gone. Returns
    /// the numbers of those requests' writes.
    pub(crate) fn retain_gateways(
        &self,
        alive: impl Fn(Session) -> bool,
        may_return: impl Fn(Session) -> bool,
    ) -> Vec<u64> {
        let mut table = self.table.lock();
        let over: Vec<_> =
            table.connections.keys().filter(|(gateway, _)| !alive(*gateway)).copied().collect();
        over.into_iter().for_each(|key| table.end(key));
        table.revoked.retain(|(gateway, _)| alive(*gateway));
        let mut freed = Vec::new();
        table.gateways.retain(|gateway, known| {
            let keep = may_return(*gateway);
            if !keep {
                freed.extend(known.requests.values().flat_map(|r| r.numbers.iter().copied()));
            }
            keep
        });
        freed
    }

    /// Who has the VDI open.
    pub(crate) fn connections(&self) -> Vec<Connection> {
        self.table.lock().connections.values().cloned().collect()
    }

    /// Begins a request of a connection; `None` if the connection is not known here.
    ///
    /// `fenced` says whether the connection's attach generation has been superseded.
    pub(crate) fn begin(
        &self,
        gateway: Session,
        connection: u64,
        fenced: impl Fn(&Connection) -> bool,
    ) -> Option<Result<InFlight<'_>, IoFailure>> {
        let mut table = self.table.lock();
        if table.revoked.contains(&(gateway, connection)) {
            return Some(Err(IoFailure::Fenced));
        }
        let known = table.connections.get(&(gateway, connection))?;
        if fenced(known) {
            return Some(Err(IoFailure::Fenced));
        }
        *table.in_flight.entry((gateway, connection)).or_default() += 1;
        Some(Ok(InFlight { clients: self, key: (gateway, connection) }))
    }

    /// Waits until no request is under way on any connection that `which` names.
    pub(crate) async fn idle(&self, which: impl Fn(&Connection) -> bool) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if !self.table.lock().busy().any(&which) {
                return;
            }
            ended.await;
        }
    }

    /// Whether a request came from another node's gateway.
    pub(crate) fn is_remote(&self, request: &RequestId, me: Session) -> bool {
        request.node != me.node.0
    }

    /// A request of another gateway arrives. `freed` gets the numbers of writes that cannot come again.
    pub(crate) fn arrive(&self, request: RequestId, answered: u64, freed: &mut Vec<u64>) -> Arrival {
        let mut table = self.table.lock();
        let gateway = table.gateways.entry(request.process()).or_default();
        gateway.note_answered(answered, freed);
        if request.number < gateway.answered {
            return Arrival::Late;
        }
        if let Some(known) = gateway.requests.get(&request.number) {
            return Arrival::Again(known.outcome.clone());
        }
        let (sender, outcome) = watch::channel(None);
        gateway.requests.insert(request.number, Known { outcome, numbers: Vec::new() });
        Arrival::New(sender)
    }

    /// A request was not done and may be tried anew.
    pub(crate) fn withdraw(&self, request: RequestId) -> Vec<u64> {
        let mut table = self.table.lock();
        let gateway = table.gateways.get_mut(&request.process());
        gateway.and_then(|g| g.requests.remove(&request.number)).map(|r| r.numbers).unwrap_or_default()
    }

    /// Keeps a write's number open until its gateway has answered the request. False if that has happened.
    pub(crate) fn keep_number(&self, request: RequestId, number: u64) -> bool {
        let mut table = self.table.lock();
        let known =
            table.gateways.get_mut(&request.process()).and_then(|g| g.requests.get_mut(&request.number));
        match known {
            Some(known) => {
                known.numbers.push(number);
                true
            }
            None => false,
        }
    }

    /// A request of this node's own gateway begins. Until it ends all of it may come again, through another owner.
    pub(crate) fn begin_own(&self, request: RequestId) {
        self.table.lock().own.insert(request.number, Vec::new());
    }

    /// Keeps a write's number open until the request of this node's gateway has ended. False if that has happened.
    pub(crate) fn keep_own_number(&self, request: RequestId, number: u64) -> bool {
        let mut table = self.table.lock();
        let numbers = table.own.get_mut(&request.number);
        numbers.map(|numbers| numbers.push(number)).is_some()
    }

    /// A request of this node's own gateway has ended. Returns the numbers of its writes.
    pub(crate) fn end_own(&self, request: RequestId) -> Vec<u64> {
        self.table.lock().own.remove(&request.number).unwrap_or_default()
    }

    /// Processes of gateways some of whose requests are kept here. One that goes on says with its next
    /// request what it has answered.
    pub(crate) fn unanswered(&self) -> Vec<Session> {
        let table = self.table.lock();
        table.gateways.iter().filter(|(_, g)| !g.requests.is_empty()).map(|(process, _)| *process).collect()
    }

    /// A gateway's process says below which number its requests have been answered. Returns the numbers of
    /// the writes that cannot come again.
    pub(crate) fn note_answered(&self, process: Session, below: u64) -> Vec<u64> {
        let mut freed = Vec::new();
        self.table.lock().gateways.entry(process).or_default().note_answered(below, &mut freed);
        freed
    }

    /// Every request of a gateway below this number has been answered.
    pub(crate) fn answered(&self, request: &RequestId) -> u64 {
        self.table.lock().gateways.get(&request.process()).map_or(0, |g| g.answered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(number: u64) -> RequestId {
        RequestId { node: 1, start: 1, number }
    }

    #[test]
    fn a_request_that_comes_again_gets_the_first_ones_outcome() {
        let clients = Clients::default();
        let mut freed = Vec::new();
        let Arrival::New(sender) = clients.arrive(request(5), 0, &mut freed) else { panic!("new") };
        assert!(clients.keep_number(request(5), 77));
        let Arrival::Again(outcome) = clients.arrive(request(5), 0, &mut freed) else { panic!("again") };
        sender.send_replace(Some(Ok(())));
        assert_eq!(*outcome.borrow(), Some(Ok(())));
        assert!(freed.is_empty());
        assert!(matches!(clients.arrive(request(6), 6, &mut freed), Arrival::New(_)));
        assert_eq!(freed, [77]);
        assert!(matches!(clients.arrive(request(5), 6, &mut freed), Arrival::Late));
        assert!(!clients.keep_number(request(5), 78));
    }

    #[test]
    fn a_gateway_that_goes_quiet_is_asked() {
        let clients = Clients::default();
        let mut freed = Vec::new();
        assert!(matches!(clients.arrive(request(5), 4, &mut freed), Arrival::New(_)));
        assert!(clients.keep_number(request(5), 77));
        let quiet = request(5).process();
        assert_eq!(clients.unanswered(), [quiet]);
        assert!(clients.note_answered(quiet, 5).is_empty());
        assert_eq!(clients.note_answered(quiet, 6), [77]);
        assert!(clients.unanswered().is_empty());
        assert!(matches!(clients.arrive(request(5), 4, &mut freed), Arrival::Late));
        assert_eq!(clients.answered(&request(5)), 6);
    }

    #[test]
    fn all_of_a_request_of_the_own_gateway_stays_open_until_it_ends() {
        let clients = Clients::default();
        clients.begin_own(request(5));
        assert!(clients.keep_own_number(request(5), 77));
        assert!(clients.keep_own_number(request(5), 78));
        assert_eq!(clients.end_own(request(5)), [77, 78]);
        assert!(!clients.keep_own_number(request(5), 79));
    }

    fn attached(connection: u64, generation: u64) -> Connection {
        let gateway = Session { node: wire::id::NodeId(1), start: 1 };
        Connection {
            gateway: gateway.into(),
            connection,
            attach_client: "c".into(),
            attach_generation: generation,
            ..Connection::default()
        }
    }

    #[tokio::test]
    async fn what_an_ended_connection_has_under_way_is_waited_for_by_the_next_generation() {
        use futures::FutureExt;
        let gateway = Session { node: wire::id::NodeId(1), start: 1 };
        let by_close = |clients: &Clients| clients.close(gateway, 3);
        let by_death = |clients: &Clients| _ = clients.retain_gateways(|_| false, |_| true);
        for end in [&by_close as &dyn Fn(&Clients), &by_death] {
            let clients = Clients::default();
            clients.open(attached(3, 1)).expect("not withdrawn");
            let under_way = clients.begin(gateway, 3, |_| false).expect("known").expect("not fenced");
            end(&clients);
            assert!(clients.connections().is_empty() && clients.begin(gateway, 3, |_| false).is_none());
            let mut next = Box::pin(clients.supersede("c", 2));
            assert!((&mut next).now_or_never().is_none());
            drop(under_way);
            next.now_or_never().expect("nothing is under way");
            assert!(clients.table.lock().ending.is_empty());
        }
    }

    #[tokio::test]
    async fn a_lower_generation_is_refused_although_the_log_does_not_tell_yet() {
        let clients = Clients::default();
        clients.supersede("c", 2).await;
        clients.open(attached(4, 2)).expect("the newest");
        clients.close(attached(4, 2).gateway.into(), 4);
        // Its gateway still has a request of it, and makes it known to an owner that has not met it before.
        assert_eq!(clients.open(attached(3, 1)), Err(IoFailure::Fenced));
        clients.open(attached(5, 2)).expect("the same once more");
    }

    #[tokio::test]
    async fn a_fenced_connection_is_refused_and_what_it_had_under_way_is_waited_for() {
        use futures::FutureExt;
        let clients = Clients::default();
        let gateway = Session { node: wire::id::NodeId(1), start: 1 };
        let connection = Connection {
            gateway: gateway.into(),
            connection: 3,
            attach_client: "c".into(),
            attach_generation: 1,
            ..Connection::default()
        };
        clients.open(connection).expect("not withdrawn");
        let under_way = clients.begin(gateway, 3, |_| false).expect("known").expect("not fenced");
        assert!(clients.begin(gateway, 4, |_| false).is_none());
        let fenced = clients.begin(gateway, 3, |c| c.attach_generation < 2).expect("known");
        assert!(matches!(fenced, Err(IoFailure::Fenced)));
        let mut idle = Box::pin(clients.idle(|c| c.attach_generation < 2));
        assert!((&mut idle).now_or_never().is_none());
        drop(under_way);
        idle.now_or_never().expect("nothing is under way");
    }

    #[tokio::test]
    async fn a_withdrawn_connection_is_refused_for_good_and_another_one_is_not() {
        use futures::FutureExt;
        let clients = Clients::default();
        let gateway = Session { node: wire::id::NodeId(1), start: 1 };
        let connection = |number| Connection {
            gateway: gateway.into(),
            connection: number,
            client: "c".into(),
            ..Connection::default()
        };
        clients.open(connection(3)).expect("not withdrawn");
        let under_way = clients.begin(gateway, 3, |_| false).expect("known").expect("not fenced");
        let mut revoked = Box::pin(clients.revoke(|c| c.client == "c"));
        assert!((&mut revoked).now_or_never().is_none(), "a request is under way");
        assert!(matches!(clients.begin(gateway, 3, |_| false), Some(Err(IoFailure::Fenced))));
        drop(under_way);
        assert_eq!(revoked.now_or_never().expect("idle"), [connection(3)]);
        assert_eq!(clients.open(connection(3)), Err(IoFailure::Fenced));
        assert!(matches!(clients.begin(gateway, 3, |_| false), Some(Err(IoFailure::Fenced))));
        clients.open(connection(4)).expect("a new connection");
        clients.retain_gateways(|_| false, |_| false);
        clients.open(connection(3)).expect("forgotten with its gateway");
    }
}
