//! Exports in memory: to test the server with foreign clients, and to measure it by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use wire::name::ExportName;

use super::export::{
    BlockExtent, ClientInfo, Export, ExportInfo, Exports, IoError, OpenError, Segment, WriteFlags, ZeroFlags,
};

/// Granularity of holes.
const BLOCK_LEN: u64 = 4096;

/// Named disks.
#[derive(Default)]
pub struct MemoryExports {
    disks: RwLock<BTreeMap<String, Arc<MemoryDisk>>>,
}

/// A sparse disk whose slowness and failures can be set.
pub struct MemoryDisk {
    info: ExportInfo,
    /// Only blocks that were written. Guards one block operation at a time; never held across a wait.
    blocks: Mutex<BTreeMap<u64, Box<[u8]>>>,
    delay_ms: AtomicU64,
    failure: Mutex<Option<IoError>>,
    open_count: AtomicU64,
    close_count: AtomicU64,
    running_count: AtomicU64,
    flush_count: AtomicU64,
}

impl MemoryExports {
    /// Adds a disk of zeros.
    pub fn add(&self, name: &str, size: u64, read_only: bool) -> Arc<MemoryDisk> {
        let disk = Arc::new(MemoryDisk {
            info: ExportInfo {
                name: name.to_owned(),
                description: format!("{name} in memory"),
                size,
                read_only,
            },
            blocks: Mutex::default(),
            delay_ms: AtomicU64::new(0),
            failure: Mutex::new(None),
            open_count: AtomicU64::new(0),
            close_count: AtomicU64::new(0),
            running_count: AtomicU64::new(0),
            flush_count: AtomicU64::new(0),
        });
        self.disks.write().insert(name.to_owned(), Arc::clone(&disk));
        disk
    }

    fn find(&self, name: &ExportName) -> Result<Arc<MemoryDisk>, OpenError> {
        let name = name.vdi.as_str();
        self.disks.read().get(name).cloned().ok_or_else(|| OpenError::NotFound(name.to_owned()))
    }
}

#[async_trait]
impl Exports for MemoryExports {
    async fn list(&self) -> Vec<String> {
        self.disks.read().keys().cloned().collect()
    }

    async fn describe(&self, name: &ExportName) -> Result<ExportInfo, OpenError> {
        Ok(self.find(name)?.info())
    }

    async fn open(&self, name: &ExportName, _client: ClientInfo) -> Result<Arc<dyn Export>, OpenError> {
        let disk = self.find(name)?;
        disk.open_count.fetch_add(1, Ordering::SeqCst);
        Ok(disk)
    }
}

impl MemoryDisk {
    /// Every request takes this long from now on.
    pub fn set_delay(&self, delay: Duration) {
        let delay = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.delay_ms.store(delay, Ordering::SeqCst);
    }

    /// Every request fails like this from now on, or does not.
    pub fn set_failure(&self, failure: Option<IoError>) {
        *self.failure.lock() = failure;
    }

    /// Times it was opened.
    pub fn open_count(&self) -> u64 {
        self.open_count.load(Ordering::SeqCst)
    }

    /// Times it was closed.
    pub fn close_count(&self) -> u64 {
        self.close_count.load(Ordering::SeqCst)
    }

    /// Requests that have begun and not ended.
    pub fn running_count(&self) -> u64 {
        self.running_count.load(Ordering::SeqCst)
    }

    /// Flushes, and requests with FUA.
    pub fn flush_count(&self) -> u64 {
        self.flush_count.load(Ordering::SeqCst)
    }

    /// Waits and fails as set. What it returns counts as running while it lives.
    async fn begin(&self, durable: bool) -> Result<Running<'_>, IoError> {
        self.running_count.fetch_add(1, Ordering::SeqCst);
        let running = Running(self);
        let delay = self.delay_ms.load(Ordering::SeqCst);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        if durable {
            self.flush_count.fetch_add(1, Ordering::SeqCst);
        }
        match *self.failure.lock() {
            Some(error) => Err(error),
            None => Ok(running),
        }
    }
}

struct Running<'a>(&'a MemoryDisk);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running_count.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Cuts a range at block borders: block number, offset in the block, length.
fn spans(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + len;
    std::iter::successors(Some(offset), |at| Some((at / BLOCK_LEN + 1) * BLOCK_LEN))
        .take_while(move |at| *at < end)
        .map(move |at| {
            let within = at % BLOCK_LEN;
            let len = (BLOCK_LEN - within).min(end - at);
            (at / BLOCK_LEN, within as usize, len as usize)
        })
}

#[async_trait]
impl Export for MemoryDisk {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Vec<Segment>, IoError> {
        let _running = self.begin(false).await?;
        let blocks = self.blocks.lock();
        let mut segments = Vec::new();
        let mut data = Vec::new();
        let mut left = len as usize;
        for (number, within, part) in spans(offset, u64::from(len)) {
            match (blocks.get(&number), segments.last_mut()) {
                (Some(block), _) => {
                    if data.is_empty() {
                        data.reserve_exact(left);
                    }
                    data.extend_from_slice(&block[within..within + part]);
                }
                (None, Some(Segment::Hole(hole))) if data.is_empty() => *hole += part as u32,
                (None, _) => {
                    if !data.is_empty() {
                        segments.push(Segment::Data(std::mem::take(&mut data).into()));
                    }
                    segments.push(Segment::Hole(part as u32));
                }
            }
            left -= part;
        }
        if !data.is_empty() {
            segments.push(Segment::Data(data.into()));
        }
        Ok(segments)
    }

    async fn write(&self, offset: u64, mut data: Bytes, flags: WriteFlags) -> Result<(), IoError> {
        let _running = self.begin(flags.fua).await?;
        let mut blocks = self.blocks.lock();
        for (number, within, part) in spans(offset, data.len() as u64) {
            let block = blocks.entry(number).or_insert_with(|| vec![0; BLOCK_LEN as usize].into());
            block[within..within + part].copy_from_slice(&data.split_to(part));
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.begin(true).await.map(drop)
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoError> {
        let _running = self.begin(fua).await?;
        let mut blocks = self.blocks.lock();
        for (number, _, part) in spans(offset, len) {
            if part as u64 == BLOCK_LEN {
                blocks.remove(&number);
            }
        }
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<(), IoError> {
        let _running = self.begin(flags.fua).await?;
        if flags.fast && !flags.may_punch {
            return Err(IoError::Unsupported);
        }
        let mut blocks = self.blocks.lock();
        for (number, within, part) in spans(offset, len) {
            if flags.may_punch && part as u64 == BLOCK_LEN {
                blocks.remove(&number);
            } else if let Some(block) = blocks.get_mut(&number) {
                block[within..within + part].fill(0);
            } else if !flags.may_punch {
                blocks.insert(number, vec![0; BLOCK_LEN as usize].into());
            }
        }
        Ok(())
    }

    async fn cache(&self, _offset: u64, _len: u64) -> Result<(), IoError> {
        self.begin(false).await.map(drop)
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<BlockExtent>, IoError> {
        let _running = self.begin(false).await?;
        let blocks = self.blocks.lock();
        let mut extents: Vec<BlockExtent> = Vec::new();
        for (number, _, part) in spans(offset, len) {
            let (len, hole) = (part as u64, !blocks.contains_key(&number));
            match extents.last_mut() {
                Some(last) if last.hole == hole => last.len += len,
                _ => extents.push(BlockExtent { len, hole }),
            }
        }
        Ok(extents)
    }

    async fn close(&self) {
        assert!(
            self.close_count() < self.open_count(),
            "a disk is closed as often as it was opened, and not more"
        );
        self.close_count.fetch_add(1, Ordering::SeqCst);
    }
}
