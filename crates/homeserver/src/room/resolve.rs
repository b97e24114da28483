//! State resolution: what the state of a room is where its events disagree. The algorithm is `ruma_state_res`'s, which
//! asks for events synchronously; here is what it needs to be handed: the states, their auth chains, the conflicted state
//! subgraph and the events, read from storage beforehand.
//! Spec: rooms/v2, "State resolution"; rooms/v12 for its changes.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ruma::{
    EventId, OwnedEventId,
    events::StateEventType,
    state_res::{self, auth_types_for_event, utils::event_id_set::EventIdSet},
};

use super::{Error, Event, Rooms, StateEntry, StateMap, state::Snapshot, worker::Batch};

/// How often resolution is begun anew for events that were not read beforehand. Each round reads a whole step of what the
/// algorithm asks for; none is needed as a rule.
const MAX_ROUNDS: usize = 8;

/// The graph of `auth_events`, by key.
type AuthGraph = HashMap<i64, Vec<i64>>;

impl Rooms {
    /// The state that a state group is, while a batch is being made.
    pub(super) async fn snapshot(&self, batch: &Batch, group: i64) -> Result<Snapshot, Error> {
        if group == batch.state.group() {
            return Ok(batch.state.snapshot());
        }
        if group == 0 {
            return Ok(Snapshot::default());
        }
        if let Some(kept) = batch.snapshots.get(&group) {
            return Ok(kept.clone());
        }
        if let Some(kept) = self.inner.snapshots.get(group) {
            return Ok(kept);
        }
        let chain = self.inner.store.state_chain(group).await?;
        if chain.is_empty() {
            // Taken for an empty state it would win over what the room has.
            return Err(storage::Error::corrupt("state_groups", format!("state group {group} is missing")).into());
        }
        let snapshot = Snapshot {
            map: self.state_of_group(&batch.state, group).await?,
            chain: Arc::new(chain),
        };
        self.inner.snapshots.put(&snapshot);
        Ok(snapshot)
    }

    /// The state that the states of several groups resolve to. Where it is none of them, it becomes a group of its own.
    pub(super) async fn merged(&self, batch: &mut Batch, mut groups: Vec<i64>) -> Result<Snapshot, Error> {
        groups.sort_unstable();
        groups.dedup();
        if let [only] = groups[..] {
            return self.snapshot(batch, only).await;
        }
        let known = batch.resolved.get(&groups).copied();
        if let Some(known) = known.or_else(|| self.inner.snapshots.resolved(&groups)) {
            return self.snapshot(batch, known).await;
        }
        let mut states = Vec::with_capacity(groups.len());
        for group in &groups {
            states.push(self.snapshot(batch, *group).await?);
        }
        let map = self.resolve(batch, &states).await?;
        // The difference to the state that is nearest; one from which something is gone cannot be its parent.
        let nearest = states
            .iter()
            .filter_map(|state| {
                let differences = state.map.differences(&map);
                let entries: Option<Vec<i64>> = differences
                    .iter()
                    .map(|(_, _, entry)| Some(entry.as_ref()?.nid))
                    .collect();
                Some((entries?, state))
            })
            .min_by_key(|(entries, _)| entries.len());
        let (entries, chain) = match nearest {
            Some((entries, state)) => (entries, state.chain.clone()),
            None => (map.iter().map(|(_, _, entry)| entry.nid).collect(), Arc::default()),
        };
        let mut snapshot = Snapshot { map, chain };
        if !entries.is_empty() {
            batch.add_group(&mut snapshot, entries);
        }
        batch.resolved.insert(groups, snapshot.group());
        batch.snapshots.insert(snapshot.group(), snapshot.clone());
        Ok(snapshot)
    }

    async fn resolve(&self, batch: &Batch, states: &[Snapshot]) -> Result<StateMap, Error> {
        let maps: Vec<&StateMap> = states.iter().map(|state| &state.map).collect();
        let conflict = Conflict::between(&maps);
        let Some(first) = maps
            .first()
            .filter(|_| !conflict.by_state.iter().all(HashSet::is_empty))
        else {
            return Ok(maps.first().map(|map| (*map).clone()).unwrap_or_default());
        };
        let rules = batch.state.rules.clone();
        let Some(state_res) = rules.state_res.v2_rules().copied() else {
            return Err(Error::UnsupportedVersion(batch.state.version.to_string()));
        };
        let conflicted: HashSet<i64> = conflict.by_state.iter().flatten().copied().collect();
        // Mainlines are walked from the power levels down, conflicted or not.
        let levels = maps
            .iter()
            .filter_map(|map| map.get(&StateEventType::RoomPowerLevels, ""));
        let seeds = conflicted.iter().copied().chain(levels.map(|entry| entry.nid));
        let graph = self.auth_graph(batch, seeds.collect()).await?;
        let mut chains: Vec<HashSet<i64>> = conflict.by_state.iter().map(|events| chain(&graph, events)).collect();
        self.complete_chains(batch, &conflict, &mut chains).await?;
        let subgraph = conflicted_subgraph(&graph, &conflicted);

        let mut events = Known::default();
        let in_graph = graph
            .iter()
            .flat_map(|(event, auth)| auth.iter().chain([event]))
            .copied();
        let wanted: HashSet<i64> = in_graph.chain(conflicted.iter().copied()).collect();
        events.add(self.known_events(batch, wanted).await?);
        // What the iterative checks look up in the state.
        let mut looked_up = HashSet::new();
        for event in events.by_nid.values() {
            let types = auth_types_for_event(
                &event.kind,
                &event.sender,
                event.state_key.as_deref(),
                &event.content,
                &rules.authorization,
            );
            for (kind, key) in types.unwrap_or_default() {
                looked_up.extend(maps.iter().filter_map(|map| Some(map.get(&kind, &key)?.nid)));
            }
        }
        looked_up.retain(|nid| !events.by_nid.contains_key(nid));
        events.add(self.known_events(batch, looked_up).await?);
        events.add(batch.state.pinned(&StateEventType::RoomCreate).cloned());

        let ids = |nids: &HashSet<i64>, events: &Known| -> EventIdSet<OwnedEventId> {
            let known = nids.iter().filter_map(|nid| events.by_nid.get(nid));
            known.map(|event| event.event_id.clone()).collect()
        };
        let inputs: Vec<state_res::StateMap<OwnedEventId>> = maps
            .iter()
            .map(|map| {
                map.iter()
                    .map(|(kind, key, entry)| ((kind.clone(), key.to_owned()), entry.event_id.clone()))
                    .collect()
            })
            .collect();
        let inputs = Arc::new(inputs);
        let mut absent = HashSet::new();
        for _ in 0..MAX_ROUNDS {
            let chains: Vec<_> = chains.iter().map(|chain| ids(chain, &events)).collect();
            let subgraph = ids(&subgraph, &events);
            let (rules, inputs, by_id) = (rules.clone(), inputs.clone(), events.by_id.clone());
            // A large conflict takes a while.
            let (resolved, missing) = tokio::task::spawn_blocking(move || {
                let missing = RefCell::new(HashSet::new());
                let resolved = state_res::resolve(
                    &rules.authorization,
                    &state_res,
                    inputs.iter(),
                    chains,
                    |id| {
                        let event = by_id.get(id).cloned();
                        if event.is_none() {
                            missing.borrow_mut().insert(id.to_owned());
                        }
                        event
                    },
                    |_| Some(subgraph.clone()),
                );
                (resolved, missing.into_inner())
            })
            .await
            .map_err(|e| Error::Internal(format!("resolving a room's state: {e}")))?;
            let missing: Vec<OwnedEventId> = missing.into_iter().filter(|id| absent.insert(id.clone())).collect();
            if missing.is_empty() {
                let resolved = resolved.map_err(|e| Error::Internal(format!("resolving a room's state: {e}")))?;
                return Ok(lay_over(first, &maps, &events, resolved));
            }
            events.add(self.find_events(batch, &missing).await?);
        }
        Err(Error::Internal(
            "resolving a room's state asks for ever more events".to_owned(),
        ))
    }

    /// Adds to the auth chains of the conflicted events what decides whether an event is in *every* chain: those also
    /// begin at the state that nobody disputes. Only events that some chains lack matter, and those that lead to them.
    async fn complete_chains(
        &self,
        batch: &Batch,
        conflict: &Conflict,
        chains: &mut [HashSet<i64>],
    ) -> Result<(), Error> {
        let all: HashSet<i64> = chains.iter().flatten().copied().collect();
        let open: HashSet<i64> = all
            .into_iter()
            .filter(|nid| !chains.iter().all(|chain| chain.contains(nid)))
            .collect();
        let Some(floor) = open.iter().min().copied() else {
            return Ok(());
        };
        let mut seen = HashSet::new();
        let mut stored = Vec::new();
        let mut next: Vec<i64> = conflict.undisputed.iter().copied().filter(|nid| *nid > floor).collect();
        while let Some(nid) = next.pop() {
            match batch.auth_of(nid) {
                Some(auth) => next.extend(auth.iter().copied().filter(|auth| *auth >= floor && seen.insert(*auth))),
                None => stored.push(nid),
            }
        }
        seen.extend(self.inner.store.auth_chain_after(&stored, floor).await?);
        for nid in open.intersection(&seen) {
            for chain in chains.iter_mut() {
                chain.insert(*nid);
            }
        }
        Ok(())
    }

    /// The graph of `auth_events` below some events, of the batch and of storage.
    async fn auth_graph(&self, batch: &Batch, mut next: Vec<i64>) -> Result<AuthGraph, Error> {
        let mut graph = AuthGraph::new();
        let mut stored = Vec::new();
        while let Some(nid) = next.pop() {
            match batch.auth_of(nid) {
                Some(auth) if !graph.contains_key(&nid) => {
                    next.extend(auth);
                    graph.insert(nid, auth.to_vec());
                }
                Some(_) => {}
                None => stored.push(nid),
            }
        }
        stored.sort_unstable();
        stored.dedup();
        for (event, auth) in self.inner.store.auth_graph(&stored).await? {
            graph.entry(event).or_default().push(auth);
        }
        Ok(graph)
    }

    /// The events with these keys, of the batch, from memory or from storage.
    pub(super) async fn known_events(
        &self,
        batch: &Batch,
        nids: impl IntoIterator<Item = i64>,
    ) -> Result<Vec<Arc<Event>>, Error> {
        let mut events = Vec::new();
        let mut others = Vec::new();
        for nid in nids {
            match batch.events.iter().find(|new| new.event.nid == nid) {
                Some(new) => events.push(new.event.clone()),
                None => others.push(nid),
            }
        }
        events.extend(self.events(&batch.state.room_id, &others).await?);
        Ok(events)
    }

    /// The events of the room with these ids, refused ones too; those that are not known are left out.
    pub(super) async fn find_events(&self, batch: &Batch, ids: &[OwnedEventId]) -> Result<Vec<Arc<Event>>, Error> {
        let mut events = Vec::with_capacity(ids.len());
        let mut others: Vec<&str> = Vec::new();
        for id in ids {
            match batch.events.iter().find(|new| new.event.event_id == *id) {
                Some(new) => events.push(new.event.clone()),
                None => others.push(id.as_str()),
            }
        }
        for row in self.inner.store.events_by_id(&others).await? {
            if row.room_nid == batch.state.room_nid {
                events.push(self.read_row(row, &batch.state.room_id)?);
            }
        }
        Ok(events)
    }
}

/// Events by both their names.
#[derive(Debug, Default)]
struct Known {
    by_nid: HashMap<i64, Arc<Event>>,
    by_id: HashMap<OwnedEventId, Arc<Event>>,
}

impl Known {
    fn add(&mut self, events: impl IntoIterator<Item = Arc<Event>>) {
        for event in events {
            self.by_id.insert(event.event_id.clone(), event.clone());
            self.by_nid.insert(event.nid, event);
        }
    }

    fn get(&self, id: &EventId) -> Option<&Arc<Event>> {
        self.by_id.get(id)
    }
}

/// Where states agree and where not.
#[derive(Debug, Default)]
struct Conflict {
    /// For each state, its events that are not the same in every other.
    by_state: Vec<HashSet<i64>>,
    /// The events that are the same in all.
    undisputed: Vec<i64>,
}

impl Conflict {
    fn between(maps: &[&StateMap]) -> Self {
        let mut conflict = Self {
            by_state: vec![HashSet::new(); maps.len()],
            undisputed: Vec::new(),
        };
        for (at, map) in maps.iter().enumerate() {
            for (kind, key, entry) in map.iter() {
                let agreed = maps
                    .iter()
                    .all(|other| other.get(kind, key).is_some_and(|theirs| theirs.nid == entry.nid));
                if !agreed {
                    conflict.by_state[at].insert(entry.nid);
                } else if at == 0 {
                    conflict.undisputed.push(entry.nid);
                }
            }
        }
        conflict
    }
}

/// What authorises `events`, and what authorises that, and so on.
fn chain(graph: &AuthGraph, events: &HashSet<i64>) -> HashSet<i64> {
    let mut chain = HashSet::new();
    let mut next: Vec<i64> = events.iter().copied().collect();
    while let Some(nid) = next.pop() {
        let auth = graph.get(&nid).map(Vec::as_slice).unwrap_or_default();
        next.extend(auth.iter().copied().filter(|auth| chain.insert(*auth)));
    }
    chain
}

/// The events on every path along `auth_events` from one conflicted event to another, both ends included.
/// Spec: rooms/v12, "Conflicted state subgraph".
fn conflicted_subgraph(graph: &AuthGraph, conflicted: &HashSet<i64>) -> HashSet<i64> {
    let mut below = chain(graph, conflicted);
    below.extend(conflicted);
    let mut authorises: HashMap<i64, Vec<i64>> = HashMap::new();
    for (event, auth) in graph.iter().filter(|(event, _)| below.contains(event)) {
        for auth in auth {
            authorises.entry(*auth).or_default().push(*event);
        }
    }
    let mut subgraph = conflicted.clone();
    let mut next: Vec<i64> = conflicted.iter().copied().collect();
    while let Some(nid) = next.pop() {
        let above = authorises.get(&nid).map(Vec::as_slice).unwrap_or_default();
        next.extend(above.iter().copied().filter(|event| subgraph.insert(*event)));
    }
    subgraph
}

/// The resolved state as changes to `first`, so that both share what is the same.
fn lay_over(
    first: &StateMap,
    maps: &[&StateMap],
    events: &Known,
    resolved: state_res::StateMap<OwnedEventId>,
) -> StateMap {
    let mut state = first.clone();
    for (kind, key, _) in first.iter() {
        if !resolved.contains_key(&(kind.clone(), key.to_owned())) {
            state.remove(kind, key);
        }
    }
    for ((kind, key), id) in resolved {
        if first.get(&kind, &key).is_some_and(|entry| entry.event_id == id) {
            continue;
        }
        let held = maps
            .iter()
            .filter_map(|map| map.get(&kind, &key))
            .find(|entry| entry.event_id == id);
        // What was not in any of the states was in the auth difference: its event is at hand.
        let entry = held
            .cloned()
            .or_else(|| events.get(&id).map(|event| StateEntry::of(event)));
        if let Some(entry) = entry {
            state.insert(kind, &key, entry);
        }
    }
    state
}

#[cfg(test)]
mod tests;
