//! A VDI's object map at its owner: which objects exist, under which birth.
//!
//! Called by [`super::owner`]. The map is the authority for "never allocated" (guarantee 4). The owner is
//! the only one that changes it, so its cached pages are current. Order of a creation (rule 11): the object
//! is durable at every member before its map entry is written, a page before its parent's entry, the root
//! before the cluster log names it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use wire::frame::Payload;
use wire::id::{Birth, Oid};
use wire::peer::ObjectRef;

use super::context::RETRY_DELAY;
use super::map::{self, Entry, FANOUT, PAGE_SIZE};
use super::object::{Change, Object};
use super::owner::{IoFailure, Owner};
use crate::cluster::entry::{ClusterEntry, ClusterReply};
use crate::store::Segment;

/// Cached pages; 24 KiB each in memory.
const PAGES_MAX: usize = 1024;

/// A cached page of the map.
pub(crate) struct Page {
    object: Arc<Object>,
    entries: Mutex<Vec<Option<Entry>>>,
    used: AtomicU64,
}

/// The cached part of the map.
#[derive(Default)]
pub(crate) struct Tree {
    pages: Mutex<HashMap<(u8, u64), Arc<Page>>>,
    /// Held while pages are loaded or created, so that each is only once.
    grow: tokio::sync::Mutex<()>,
    clock: AtomicU64,
}

impl Tree {
    fn cached(&self, at: (u8, u64)) -> Option<Arc<Page>> {
        let page = self.pages.lock().get(&at).cloned()?;
        page.used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        Some(page)
    }

    fn insert(&self, at: (u8, u64), page: Arc<Page>) {
        let mut pages = self.pages.lock();
        if pages.len() >= PAGES_MAX {
            // A page in use must stay: its object's turns and versions live in it.
            let idle = pages.iter().filter(|(_, p)| Arc::strong_count(p) == 1);
            if let Some(oldest) = idle.min_by_key(|(_, p)| p.used.load(Ordering::Relaxed)).map(|(at, _)| *at)
            {
                pages.remove(&oldest);
            }
        }
        page.used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        pages.insert(at, page);
    }
}

impl Owner {
    fn root_level(&self) -> u8 {
        map::levels(self.object_count) - 1
    }

    fn root_birth(&self) -> Result<Option<Birth>, IoFailure> {
        Ok(self.current()?.vdi(self.vdi).and_then(|v| v.root))
    }

    /// The map's entry for an object.
    pub(crate) async fn lookup(&self, index: u64) -> Result<Option<Entry>, IoFailure> {
        let (number, position) = map::place(index);
        match self.page(0, number).await? {
            Some(page) => Ok(page.entries.lock()[position]),
            None => Ok(None),
        }
    }

    /// A page, or `None` if it was never allocated.
    async fn page(&self, level: u8, number: u64) -> Result<Option<Arc<Page>>, IoFailure> {
        if let Some(page) = self.tree.cached((level, number)) {
            return Ok(Some(page));
        }
        let _growing = self.tree.grow.lock().await;
        self.load(level, number).await
    }

    /// Loads a page and those above it. Under the `grow` lock.
    async fn load(&self, level: u8, number: u64) -> Result<Option<Arc<Page>>, IoFailure> {
        // From the top down to the page that is wanted.
        let root = self.root_level();
        let mut at = root;
        let mut birth = self.root_birth()?;
        loop {
            let here = number / FANOUT.pow(u32::from(at - level));
            let Some(known) = birth else { return Ok(None) };
            let page = match self.tree.cached((at, here)) {
                Some(page) => page,
                None => self.load_page(at, here, known).await?,
            };
            if at == level {
                return Ok(Some(page));
            }
            let child = number / FANOUT.pow(u32::from(at - 1 - level));
            birth = page.entries.lock()[map::place(child).1].map(|e| e.birth);
            at -= 1;
        }
    }

    async fn load_page(&self, level: u8, number: u64, birth: Birth) -> Result<Arc<Page>, IoFailure> {
        let object = self.open_object(self.page_name(level, number, birth)).await?;
        let segments = self.read_object(&object, 0, PAGE_SIZE).await?;
        let entries = map::decode(&flatten(&segments)).map_err(|error| {
            tracing::error!(vdi = %self.vdi, level, number, %error, "the object map is damaged");
            IoFailure::Io
        })?;
        let page = Arc::new(Page {
            object: Arc::new(object),
            entries: Mutex::new(entries),
            used: AtomicU64::new(0),
        });
        self.tree.insert((level, number), page.clone());
        Ok(page)
    }

    fn page_name(&self, level: u8, number: u64, birth: Birth) -> ObjectRef {
        self.object_name(Oid::map(self.vdi, level, number), birth, PAGE_SIZE)
    }

    /// Writes an object's entry at every member; creates the pages that it takes.
    pub(crate) async fn set_entry(&self, index: u64, entry: Option<Entry>) -> Result<(), IoFailure> {
        let (number, position) = map::place(index);
        let page = match self.page(0, number).await? {
            Some(page) => page,
            None if entry.is_none() => return Ok(()),
            None => {
                let _growing = self.tree.grow.lock().await;
                self.grow(0, number).await?
            }
        };
        self.write_entry(&page, position, entry).await
    }

    async fn write_entry(&self, page: &Page, position: usize, entry: Option<Entry>) -> Result<(), IoFailure> {
        let offset = (position * map::ENTRY_LEN) as u32;
        let payload = Payload::new(offset.into(), Bytes::copy_from_slice(&map::encode(entry)));
        self.write_object(&page.object, offset, Change::Data(payload), None).await?;
        page.entries.lock()[position] = entry;
        Ok(())
    }

    /// Makes a page and those above it. Under the `grow` lock.
    async fn grow(&self, level: u8, number: u64) -> Result<Arc<Page>, IoFailure> {
        if let Some(page) = self.load(level, number).await? {
            return Ok(page);
        }
        // From the top down: the first one missing, then everything below it.
        let mut parent: Option<Arc<Page>> = None;
        for at in (level..=self.root_level()).rev() {
            let here = number / FANOUT.pow(u32::from(at - level));
            if let Some(page) = self.load(at, here).await? {
                parent = Some(page);
                continue;
            }
            let birth = self.next_birth()?;
            let object = self.create_object(self.page_name(at, here, birth)).await?;
            match &parent {
                Some(parent) => {
                    let entry = Entry { creator: self.vdi, birth };
                    self.write_entry(parent, map::place(here).1, Some(entry)).await?;
                }
                None => self.set_root(birth).await?,
            }
            let page = Arc::new(Page {
                object: Arc::new(object),
                entries: Mutex::new(vec![None; FANOUT as usize]),
                used: AtomicU64::new(0),
            });
            self.tree.insert((at, here), page.clone());
            parent = Some(page);
        }
        Ok(parent.expect("the loop ends at the level that is wanted"))
    }

    async fn set_root(&self, root: Birth) -> Result<(), IoFailure> {
        let entry = ClusterEntry::SetRoot { vdi: self.vdi, generation: self.generation, root };
        loop {
            self.current()?;
            match self.context.log.propose(entry.clone(), Duration::from_secs(1)).await {
                Ok((index, ClusterReply::Done)) => {
                    self.context.view.reaches(index).await;
                    return Ok(());
                }
                Ok((_, reply)) => {
                    tracing::warn!(vdi = %self.vdi, ?reply, "the map's root was refused");
                    return Err(IoFailure::NotOwner);
                }
                Err(error) => {
                    tracing::debug!(%error, "the map's root could not be logged yet");
                    self.context.view.change(RETRY_DELAY).await;
                }
            }
        }
    }

    /// The objects allocated between two indexes, with their births; end exclusive.
    pub(crate) async fn allocated(&self, from: u64, to: u64) -> Result<Vec<(u64, Entry)>, IoFailure> {
        let mut found = Vec::new();
        let mut index = from;
        while index < to {
            let (number, position) = map::place(index);
            let end = ((number + 1) * FANOUT).min(to);
            if let Some(page) = self.page(0, number).await? {
                let entries = page.entries.lock();
                let there = (index..end).zip(&entries[position..]);
                found.extend(there.filter_map(|(i, e)| e.map(|e| (i, e))));
                index = end;
            } else {
                index = self.next_allocated_page(number + 1).await?.map_or(to, |n| n * FANOUT);
            }
        }
        Ok(found)
    }

    /// Like [`Owner::allocated`], but stops after a page's worth of objects or `LEAVES` pages; also returns
    /// where to go on, if that is before `to`.
    pub(crate) async fn allocated_some(
        &self,
        from: u64,
        to: u64,
    ) -> Result<(Vec<(u64, Entry)>, Option<u64>), IoFailure> {
        const LEAVES: usize = 64;
        let to = to.min(self.object_count);
        let mut found = Vec::new();
        let mut index = from;
        for _ in 0..LEAVES {
            if index >= to || found.len() as u64 >= FANOUT {
                break;
            }
            let (number, _) = map::place(index);
            let end = ((number + 1) * FANOUT).min(to);
            if self.page(0, number).await?.is_some() {
                found.extend(self.allocated(index, end).await?);
                index = end;
            } else {
                index = self.next_allocated_page(number + 1).await?.map_or(to, |n| n * FANOUT);
            }
        }
        Ok((found, (index < to).then_some(index)))
    }

    /// The first leaf from `number` on that may exist: whole missing branches are skipped.
    async fn next_allocated_page(&self, number: u64) -> Result<Option<u64>, IoFailure> {
        let leaves = self.object_count.div_ceil(FANOUT);
        let mut at = number;
        'leaf: while at < leaves {
            for level in (1..=self.root_level()).rev() {
                let reach = FANOUT.pow(u32::from(level));
                if self.page(level, at / reach).await?.is_none() {
                    at = (at / reach + 1) * reach;
                    continue 'leaf;
                }
            }
            if self.page(0, at).await?.is_some() {
                return Ok(Some(at));
            }
            at += 1;
        }
        Ok(None)
    }

    /// The birth under which a page is in the map.
    pub(crate) async fn page_birth(&self, level: u8, number: u64) -> Result<Option<Birth>, IoFailure> {
        if level > self.root_level() || (level == self.root_level() && number > 0) {
            return Ok(None);
        }
        if level == self.root_level() {
            return self.root_birth();
        }
        let (parent, position) = map::place(number);
        match self.page(level + 1, parent).await? {
            Some(page) => Ok(page.entries.lock()[position].map(|e| e.birth)),
            None => Ok(None),
        }
    }

    /// The pages that the map has, by name.
    pub(crate) async fn pages(&self) -> Result<Vec<ObjectRef>, IoFailure> {
        let mut names = Vec::new();
        let mut level_numbers = vec![0u64];
        for level in (0..=self.root_level()).rev() {
            let mut below = Vec::new();
            for number in level_numbers {
                let Some(birth) = self.page_birth(level, number).await? else { continue };
                names.push(self.page_name(level, number, birth));
                if level > 0
                    && let Some(page) = self.page(level, number).await?
                {
                    let entries = page.entries.lock();
                    let there = (number * FANOUT..).zip(entries.iter()).filter(|(_, e)| e.is_some());
                    below.extend(there.map(|(n, _)| n));
                }
            }
            level_numbers = below;
        }
        Ok(names)
    }

    /// How many objects the map has.
    pub(crate) async fn count_used(&self) -> Result<u64, IoFailure> {
        let mut count = 0;
        let mut number = 0;
        if self.root_birth()?.is_none() {
            return Ok(0);
        }
        while let Some(leaf) = self.next_allocated_page(number).await? {
            if let Some(page) = self.page(0, leaf).await? {
                count += page.entries.lock().iter().flatten().count() as u64;
            }
            number = leaf + 1;
        }
        Ok(count)
    }
}

/// A read's bytes, holes as zeros.
pub(crate) fn flatten(segments: &[Segment]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in segments {
        match segment {
            Segment::Data { data, .. } => bytes.extend_from_slice(data),
            Segment::Hole(len) => bytes.resize(bytes.len() + *len as usize, 0),
        }
    }
    bytes
}
