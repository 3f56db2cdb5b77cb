//! The store itself, and what happens when it is opened.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::{Condvar, Mutex, MutexGuard};
use wire::id::{Generation, SlotIndex, VdiId};
use wire::peer::AppliedRequest;
use wire::policy::Copies;

use super::cache::{Cache, Content, Open, OpenState};
use super::error::{Error, Part};
use super::format::{self, HEADER_LEN};
use super::group::SyncGroup;
use super::intent::{self, ALL, Intents};
use super::io::{File, FileSystem, Space};
use super::key::{self, ObjectKey};
use super::log::{AppendLog, LogKind};
use super::requests::{Place, Requests};
use super::seal::Seals;
use crate::mutant::{Mutant, planted};

const FORMAT_TEXT: &[u8] = b"sheepdog objects 1\n";

/// Bounds of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Objects, and so file descriptors, kept open. Default 4,096.
    pub open_objects_max: usize,
    /// Bytes of block tables kept in memory. Default 48 MiB.
    pub table_bytes_max: usize,
    /// The boot of the machine. What was kept for the process alone counts for no other. Default 0.
    pub boot: u128,
    /// Threads that sync objects side by side in one flush. Default 8; 1 makes a simulation repeatable.
    pub flush_threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { open_objects_max: 4096, table_bytes_max: 48 << 20, boot: 0, flush_threads: 8 }
    }
}

/// One node's objects on one disk. See the [module](super) for what it promises.
pub struct LocalStore {
    pub(super) fs: Arc<dyn FileSystem>,
    pub(super) objects: PathBuf,
    pub(super) options: Options,
    pub(super) cache: Cache,
    pub(super) intents: Intents,
    seals: Seals,
    requests: Requests,
    found_requests: Mutex<Vec<(Place, AppliedRequest)>>,
    /// Slots that have a directory, or soon will.
    pub(super) slots: Mutex<HashMap<(Copies, SlotIndex), Arc<SlotDir>>>,
    /// Keys being created or removed: one thread at a time each.
    busy: Mutex<HashSet<ObjectKey>>,
    idle: Condvar,
    intent_damage: Option<String>,
    poison: OnceLock<String>,
}

/// A slot's directory.
pub(super) struct SlotDir {
    pub(super) path: PathBuf,
    /// Whether it exists, durably. Locked while it is being made.
    pub(super) made: Mutex<bool>,
    /// Names that may not be durable yet.
    pub(super) names: SyncGroup,
}

/// A key that only this thread creates or removes.
pub(super) struct Busy<'a> {
    store: &'a LocalStore,
    key: ObjectKey,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.store.busy.lock().remove(&self.key);
        self.store.idle.notify_all();
    }
}

impl LocalStore {
    /// Opens the store in `dir`, an existing directory, or makes an empty one there.
    ///
    /// Reads the two logs and the names of all objects, but no object. Finishes nothing by itself: objects
    /// that were written shortly before a crash are the [`suspects`](Self::suspects).
    pub fn open(fs: Arc<dyn FileSystem>, dir: &Path, options: Options) -> Result<Self, Error> {
        let objects = dir.join("objects");
        let founded = check_format(&*fs, &objects)?;
        // What an earlier process did last in these directories may not be durable yet.
        let tmp = objects.join("tmp");
        for path in [&objects, &tmp] {
            fs.create_dir(path).map_err(|e| Error::io(path, e))?;
        }
        for path in [dir, &objects] {
            fs.sync_dir(path).map_err(|e| Error::io(path, e))?;
        }
        for entry in fs.list(&tmp).map_err(|e| Error::io(&tmp, e))? {
            let path = tmp.join(entry.name);
            fs.remove(&path).map_err(|e| Error::io(&path, e))?;
        }
        let present = scan(&*fs, &objects)?;

        let seals = AppendLog::replay(&*fs, dir, LogKind::Seals)?;
        if seals.is_none() && founded {
            return Err(Error::Format {
                path: dir.join("seals.*"),
                problem: "missing, though there are objects".to_owned(),
                way_out: "put it back, or empty the directory and let the node join anew",
            });
        }
        let seals = Seals::open(fs.clone(), dir, seals)?;

        let mut intent_damage = None;
        let mut suspects = HashMap::new();
        let mut number = 1;
        match AppendLog::replay(&*fs, dir, LogKind::Intents)? {
            Some(replay) => {
                number = replay.number + 1;
                intent_damage = replay.damage.map(|d| format!("{}: {d}", replay.path.display()));
                for (key, mask) in replay.bodies.iter().filter_map(intent::decode) {
                    let slot = present.get(&(key.copies, key.slot));
                    if slot.is_some_and(|keys| keys.contains(&key)) {
                        *suspects.entry(key).or_default() |= mask;
                    }
                }
            }
            None if founded => intent_damage = Some(format!("{}: missing", dir.join("intents.*").display())),
            None => {}
        }
        if let Some(damage) = &intent_damage {
            tracing::error!(damage, "the write intents are lost: every object has to be settled");
            suspects = present.values().flatten().map(|key| (*key, ALL)).collect();
        }
        let (requests, found_requests) = Requests::open(&*fs, dir, options.boot)?;
        let unsynced: Vec<ObjectKey> = suspects.keys().copied().collect();
        let intents = Intents::open(fs.clone(), dir, number, suspects)?;
        if !founded {
            write_format(&*fs, &objects)?;
        }

        let slots = present.keys().map(|(copies, slot)| {
            let path = key::slot_dir(&objects, *copies, *slot);
            let names = SyncGroup::unsynced();
            ((*copies, *slot), Arc::new(SlotDir { path, made: Mutex::new(true), names }))
        });
        let slots = Mutex::new(slots.collect());
        let cache = Cache::new(objects.clone(), options.open_objects_max, options.table_bytes_max);
        for key in unsynced {
            cache.note_change(&cache.get(&key));
        }
        Ok(Self {
            fs,
            objects,
            options,
            cache,
            intents,
            seals,
            requests,
            found_requests: Mutex::new(found_requests),
            slots,
            busy: Mutex::default(),
            idle: Condvar::new(),
            intent_damage,
            poison: OnceLock::new(),
        })
    }

    /// Why every object is a suspect, if that is because the intents were damaged.
    pub fn intent_damage(&self) -> Option<&str> {
        self.intent_damage.as_deref()
    }

    /// Durably refuses generations of `vdi` below `generation` from now on; a lower one than before changes nothing.
    pub fn seal(&self, vdi: VdiId, generation: Generation) -> Result<(), Error> {
        self.check_alive()?;
        self.seals.seal(vdi, generation).map_err(|e| self.poison_if(e, self.seals.failure()))
    }

    /// The highest generation sealed for `vdi`; 0 when there is none.
    pub fn sealed(&self, vdi: VdiId) -> Generation {
        self.seals.sealed(vdi)
    }

    /// The VDIs for which a generation is sealed.
    pub fn sealed_vdis(&self) -> Vec<VdiId> {
        self.seals.vdis()
    }

    /// Drops the seal of a VDI that was deleted; ids are not used twice, so nobody can need it.
    pub fn forget_seal(&self, vdi: VdiId) -> Result<(), Error> {
        self.check_alive()?;
        self.seals.forget(vdi).map_err(|e| self.poison_if(e, self.seals.failure()))
    }

    /// Keeps a client request that is about to be applied. It survives the process, though not a loss of power.
    pub(crate) fn keep_request(&self, applied: &AppliedRequest) -> Result<Place, Error> {
        self.check_alive()?;
        self.requests.keep(applied)
    }

    /// Requests that can no longer come again.
    pub(crate) fn free_requests(&self, places: impl IntoIterator<Item = Place>) {
        self.requests.free(places);
    }

    /// Forgets a request that the copy has not applied after all.
    pub(crate) fn erase_request(&self, place: Place) -> Result<(), Error> {
        self.requests.erase(place)
    }

    /// What an earlier process kept; the first time it is asked for.
    pub(crate) fn take_found_requests(&self) -> Vec<(Place, AppliedRequest)> {
        std::mem::take(&mut *self.found_requests.lock())
    }

    /// The space of the disk.
    pub fn space(&self) -> Result<Space, Error> {
        self.fs.space(&self.objects).map_err(|e| Error::io(&self.objects, e))
    }

    /// The failure that ended the store's life, if one has.
    pub fn check_alive(&self) -> Result<(), Error> {
        self.poison.get().map_or(Ok(()), |cause| Err(Error::Poisoned(cause.clone())))
    }

    /// Ends the store's life: a sync has failed.
    pub(super) fn poison(&self, cause: &dyn std::fmt::Display) -> Error {
        if planted(Mutant::SyncAgain) {
            return Error::Poisoned(cause.to_string());
        }
        let cause = self.poison.get_or_init(|| cause.to_string());
        Error::Poisoned(cause.clone())
    }

    /// Passes on the error of a log, and ends the store's life when the log's has ended.
    pub(super) fn poison_if(&self, error: Error, failure: Option<std::io::Error>) -> Error {
        if failure.is_some() { self.poison(&error) } else { error }
    }

    /// Waits until no other thread creates or removes the object, and keeps others from it.
    pub(super) fn occupy(&self, key: &ObjectKey) -> Busy<'_> {
        let mut busy = self.busy.lock();
        while !busy.insert(*key) {
            self.idle.wait(&mut busy);
        }
        Busy { store: self, key: *key }
    }

    /// The slot's directory if it has one.
    pub(super) fn slot_dir(&self, copies: Copies, slot: SlotIndex) -> Option<Arc<SlotDir>> {
        self.slots.lock().get(&(copies, slot)).cloned()
    }

    /// The object's state with its content read.
    pub(super) fn load<'a>(&self, open: &'a Open) -> Result<Loaded<'a>, Error> {
        let mut state = open.state.lock();
        let OpenState { file, content } = &mut *state;
        if file.is_none() || content.is_none() {
            let known = match file.take() {
                Some(known) => known,
                None => self.fs.open(&open.path).map_err(|e| match e.kind() {
                    std::io::ErrorKind::NotFound => Error::NotFound(open.key),
                    _ => Error::io(&open.path, e),
                })?,
            };
            let read = self.read_content(&open.key, &open.path, &*known);
            *file = Some(known);
            *content = Some(read?);
        }
        Ok(Loaded { state })
    }

    /// What a file says of the object it is meant to hold.
    pub(super) fn read_content(
        &self,
        key: &ObjectKey,
        path: &Path,
        file: &dyn File,
    ) -> Result<Content, Error> {
        let damaged = Error::Damaged { key: *key, part: Part::Header };
        let io_error = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::Damaged { key: *key, part: Part::Header },
            _ => Error::io(path, e),
        };
        let mut header = vec![0; HEADER_LEN];
        file.read_at(&mut header, 0).map_err(io_error)?;
        let size = match format::decode_header(&header) {
            Some((found, size)) if found == *key => size,
            _ => return Err(damaged),
        };
        let mut table = vec![0; format::block_count(size) as usize * format::ENTRY_LEN];
        file.read_at(&mut table, format::TABLE_OFFSET).map_err(io_error)?;
        let version = format::decode_version(&header[format::VERSION_OFFSET..]);
        Ok(self.cache.content(size, version, format::decode_table(&table)))
    }

    /// The object's place in the cache, with room made for it if it is not there.
    pub(super) fn open_object(&self, key: &ObjectKey) -> Result<Arc<Open>, Error> {
        if let Some(open) = self.cache.peek(key) {
            return Ok(open);
        }
        while self.cache.is_full() {
            let dirty = self.cache.shrink();
            if dirty.is_empty() {
                break;
            }
            self.sync_objects(&dirty)?;
        }
        Ok(self.cache.get(key))
    }
}

/// A locked object whose file is open and whose content is known.
pub(super) struct Loaded<'a> {
    state: MutexGuard<'a, OpenState>,
}

impl Loaded<'_> {
    pub(super) fn file(&self) -> &Arc<dyn File> {
        self.state.file.as_ref().expect("opened by load")
    }

    pub(super) fn content(&self) -> &Content {
        self.state.content.as_ref().expect("read by load")
    }

    pub(super) fn content_mut(&mut self) -> &mut Content {
        self.state.content.as_mut().expect("read by load")
    }

    /// Goes on with another file, which holds the same.
    pub(super) fn move_to(&mut self, file: Arc<dyn File>) {
        self.state.file = Some(file);
    }

    /// Forgets the content, to be read again: a write has failed and the disk may hold either.
    pub(super) fn forget(mut self) {
        self.state.content = None;
    }
}

/// Whether there is a store already; an error when there is something else.
fn check_format(fs: &dyn FileSystem, objects: &Path) -> Result<bool, Error> {
    let path = objects.join("format");
    let io_error = |e| Error::io(&path, e);
    if fs.exists(&path).map_err(io_error)? {
        let file = fs.open(&path).map_err(io_error)?;
        let mut text = vec![0; file.size().map_err(io_error)?.min(64) as usize];
        file.read_at(&mut text, 0).map_err(io_error)?;
        if text != FORMAT_TEXT {
            return Err(Error::Format {
                path,
                problem: format!("format {:?} is not known", String::from_utf8_lossy(&text)),
                way_out: "start the version of sheep that wrote it, or use an empty directory",
            });
        }
        return Ok(true);
    }
    // A store whose making was cut short has nothing but an empty tmp.
    if fs.exists(objects).map_err(io_error)? {
        let names = fs.list(objects).map_err(|e| Error::io(objects, e))?;
        if let Some(entry) = names.iter().find(|entry| entry.name != "tmp") {
            return Err(Error::Format {
                path: objects.join(&entry.name),
                problem: "there are files here but no file \"format\"".to_owned(),
                way_out: "put the file back, or use an empty directory",
            });
        }
    }
    Ok(false)
}

fn write_format(fs: &dyn FileSystem, objects: &Path) -> Result<(), Error> {
    let (tmp, path) = (objects.join("tmp").join("format"), objects.join("format"));
    let write = || {
        let file = fs.create(&tmp)?;
        file.write_at(FORMAT_TEXT, 0)?;
        file.sync_data()?;
        fs.rename(&tmp, &path)?;
        fs.sync_dir(objects)
    };
    write().map_err(|e| Error::io(&path, e))
}

type Present = HashMap<(Copies, SlotIndex), HashSet<ObjectKey>>;

/// The names of all objects. Makes the directories of the slots durable on the way.
fn scan(fs: &dyn FileSystem, objects: &Path) -> Result<Present, Error> {
    let mut present = Present::new();
    for entry in fs.list(objects).map_err(|e| Error::io(objects, e))? {
        if entry.name == "tmp" || entry.name == "format" {
            continue;
        }
        let path = objects.join(&entry.name);
        let copies = key::parse_copies_dir(&entry.name).filter(|_| entry.is_dir);
        let copies = copies.ok_or_else(|| foreign(&path))?;
        fs.sync_dir(&path).map_err(|e| Error::io(&path, e))?;
        for entry in fs.list(&path).map_err(|e| Error::io(&path, e))? {
            let path = path.join(&entry.name);
            let slot = key::parse_slot_dir(&entry.name).filter(|_| entry.is_dir);
            let slot = slot.ok_or_else(|| foreign(&path))?;
            present.insert((copies, slot), list_keys(fs, &path, copies, slot)?);
        }
    }
    Ok(present)
}

/// The objects in a slot's directory.
pub(super) fn list_keys(
    fs: &dyn FileSystem,
    dir: &Path,
    copies: Copies,
    slot: SlotIndex,
) -> Result<HashSet<ObjectKey>, Error> {
    let entries = fs.list(dir).map_err(|e| Error::io(dir, e))?;
    let key =
        |name: &str| ObjectKey::from_file_name(copies, slot, name).ok_or_else(|| foreign(&dir.join(name)));
    entries.iter().map(|entry| key(&entry.name)).collect()
}

fn foreign(path: &Path) -> Error {
    Error::Format {
        path: path.to_owned(),
        problem: "not a file of this store".to_owned(),
        way_out: "move it away",
    }
}
