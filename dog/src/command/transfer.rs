//! `dog vdi read` and `dog vdi write`: between a VDI and stdout or stdin.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;

use tokio::sync::mpsc;
use wire::admin::read_vdi_reply::Content;
use wire::admin::write_vdi_request::Part;
use wire::admin::{
    CHUNK_LEN_MAX, ReadVdiReply, ReadVdiRequest, VdiInfoRequest, WriteVdiRequest, WriteVdiStart,
};
use wire::client::{AdminClient, ClientError};
use wire::name::VdiName;

use crate::cli::{Vdi, VdiRange};
use crate::exit::{Failure, Kind};
use crate::output::{BYTES, Output};

/// How often a read goes on at another sheep. A read that makes no progress that often will make none.
const RESUMES_MAX: u32 = 8;

/// Chunks of a write between stdin and the socket: one that is read while one is sent, and one to spare.
const CHUNKS_AHEAD: usize = 2;

/// A terminal is never meant on either side: it would be filled with bytes, or wait for someone to type
/// a disk.
pub(super) fn refuse_terminal(verb: &Vdi) -> Result<(), Failure> {
    let (what, why, hint) = match verb {
        Vdi::Read(VdiRange { name, .. }) if io::stdout().is_terminal() => (
            format!("vdi read {name}"),
            "stdout is a terminal",
            format!("dog vdi read {name} > FILE, or pipe it to a program"),
        ),
        Vdi::Write(VdiRange { name, .. }) if io::stdin().is_terminal() => (
            format!("vdi write {name}"),
            "stdin is a terminal",
            format!("dog vdi write {name} < FILE, or pipe a program into it"),
        ),
        _ => return Ok(()),
    };
    Err(Failure::new(Kind::Usage, what, why).hint(hint))
}

/// Copies from a VDI to stdout. If the sheep goes away in the middle, goes on where it was at another.
pub(super) async fn read(range: VdiRange, client: &mut AdminClient, output: &Output) -> Result<(), Failure> {
    let VdiRange { name, offset, length } = range;
    let what = format!("vdi read {name}");
    let length = match length {
        Some(length) => length,
        None => to_the_end(&what, &name, offset, client).await?,
    };
    let mut sink = Sink::stdout().map_err(Failure::io(&what))?;
    let bar = output.progress(BYTES);
    let (mut done, mut resumes) = (0, 0);
    while done < length {
        let request = ReadVdiRequest { name: name.to_string(), offset: offset + done, length: length - done };
        let mut chunks = client.vdi_read(request).await.map_err(Failure::client(&what))?;
        loop {
            match chunks.next().await {
                Ok(Some(chunk)) => {
                    done += take(chunk, offset + done, length - done, &mut sink, &what)?;
                    bar.set(done, length, "");
                }
                Ok(None) if done < length => {
                    let why = format!("the sheep sent {done} of {length} bytes");
                    return Err(Failure::new(Kind::Other, what, why));
                }
                Ok(None) => break,
                Err(error @ ClientError::Unreachable { .. }) if resumes < RESUMES_MAX => {
                    output.note(|| format!("{error}; going on elsewhere at {}", offset + done));
                    resumes += 1;
                    break;
                }
                Err(error) => return Err(Failure::client(what)(error)),
            }
        }
    }
    sink.finish().map_err(Failure::io(what))
}

async fn to_the_end(
    what: &str,
    name: &VdiName,
    offset: u64,
    client: &mut AdminClient,
) -> Result<u64, Failure> {
    let info = client.vdi_info(VdiInfoRequest { name: name.to_string() }).await;
    let size = info.map_err(Failure::client(what))?.vdi.unwrap_or_default().size;
    size.checked_sub(offset).ok_or_else(|| {
        let why = format!("offset {offset} is beyond its end");
        Failure::new(Kind::Invalid, what, why).hint(format!("it has {size} bytes"))
    })
}

/// Writes one chunk out, after checking that it is the one that is due: bytes in the wrong place would
/// be a silent corruption of whatever reads them.
fn take(chunk: ReadVdiReply, due: u64, left: u64, sink: &mut Sink, what: &str) -> Result<u64, Failure> {
    let wrong = |why: String| Failure::new(Kind::Other, what, why);
    if chunk.offset != due {
        return Err(wrong(format!("the sheep sent offset {} where {due} was due", chunk.offset)));
    }
    let (len, written) = match chunk.content {
        Some(Content::Data(data)) if data.len() as u64 <= left => (data.len() as u64, sink.data(&data)),
        Some(Content::Hole(len)) if len <= left => (len, sink.hole(len)),
        _ => return Err(wrong("the sheep sent more than was asked for".to_owned())),
    };
    if len == 0 {
        return Err(wrong("the sheep sent an empty piece".to_owned()));
    }
    written.map_err(Failure::io(what))?;
    Ok(len)
}

/// stdout, on which holes stay holes if it is a file.
struct Sink {
    out: File,
    sparse: bool,
}

impl Sink {
    fn stdout() -> io::Result<Self> {
        Self::new(File::from(io::stdout().as_fd().try_clone_to_owned()?))
    }

    fn new(out: File) -> io::Result<Self> {
        let sparse = out.metadata()?.is_file();
        Ok(Self { out, sparse })
    }

    fn data(&mut self, data: &[u8]) -> io::Result<()> {
        self.out.write_all(data)
    }

    /// Leaves a hole only at the very end of a file: anywhere else what is there would stay. That also
    /// holds for a file opened for appending, where the position means nothing until the first write.
    fn hole(&mut self, len: u64) -> io::Result<()> {
        if self.sparse {
            let end = self.out.metadata()?.len();
            if self.out.stream_position()? == end {
                let longer = end.checked_add(len).ok_or(io::ErrorKind::FileTooLarge)?;
                self.out.set_len(longer)?;
                self.out.seek(SeekFrom::End(0))?;
                return Ok(());
            }
        }
        let zeros = vec![0; CHUNK_LEN_MAX];
        let mut left = len;
        while left > 0 {
            let piece = left.min(CHUNK_LEN_MAX as u64);
            self.out.write_all(&zeros[..piece as usize])?;
            left -= piece;
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Copies from stdin into a VDI.
pub(super) async fn write(range: VdiRange, client: &mut AdminClient, output: &Output) -> Result<(), Failure> {
    let VdiRange { name, offset, length } = range;
    let what = format!("vdi write {name}");
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let start = WriteVdiStart { name: name.to_string(), offset };
    // stdin blocks, and a blocked read cannot be called off: if the sheep refuses while stdin is silent,
    // the thread is left behind and ends with the process.
    let (ended, reader) = tokio::sync::oneshot::channel();
    let bar = output.progress(BYTES);
    let pump = move || {
        let read = pump(start, length, &sender, |done| bar.set(done, length.unwrap_or(done), ""));
        // Only now the sender goes and the stream ends, so that a failed read is known before the reply.
        // Nobody listens if the command has failed already.
        let _ = ended.send(read);
        drop(sender);
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(pump).map_err(Failure::io(&what))?;
    let reply = client.vdi_write(receiver).await.map_err(Failure::client(&what))?;
    let read = match reader.await {
        Ok(Ok(read)) => read,
        Ok(Err(error)) => return Err(Failure::io(format!("{what}: stdin"))(error)),
        Err(_) => return Err(Failure::new(Kind::Io, what, "stdin was not read to its end")),
    };
    if reply.written != read {
        let why = format!("the sheep took {} of {read} bytes", reply.written);
        return Err(Failure::new(Kind::Other, what, why));
    }
    if let Some(length) = length.filter(|length| *length != read) {
        let why = format!("stdin ended after {read} of {length} bytes, which are written");
        return Err(Failure::new(Kind::Refused, what, why));
    }
    output.done(&format!("{name}: {read} bytes written"), &serde_json::json!({ "written": read }))
}

/// Sends stdin, in pieces of which those of zeros only become holes; returns how much that was.
fn pump(
    start: WriteVdiStart,
    length: Option<u64>,
    sender: &mpsc::Sender<WriteVdiRequest>,
    progress: impl Fn(u64),
) -> io::Result<u64> {
    let send = |part| sender.blocking_send(WriteVdiRequest { part: Some(part) }).is_ok();
    let mut stdin = io::stdin().lock().take(length.unwrap_or(u64::MAX));
    let mut done = 0;
    let mut open = send(Part::Start(start));
    // When the sheep has given up, its reply says why.
    while open {
        let mut chunk = Vec::with_capacity(CHUNK_LEN_MAX);
        stdin.by_ref().take(CHUNK_LEN_MAX as u64).read_to_end(&mut chunk)?;
        let len = chunk.len() as u64;
        if len == 0 {
            break;
        }
        let zeros = chunk.iter().all(|byte| *byte == 0);
        open = send(if zeros { Part::Hole(len) } else { Part::Data(chunk.into()) });
        done += len;
        progress(done);
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_hole_at_the_end_of_a_file_takes_no_space_and_elsewhere_writes_zeros() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        let mut sink = Sink::new(file.reopen().expect("opens")).expect("sink");
        sink.data(b"ab").expect("writes");
        sink.hole(64 << 20).expect("leaves a hole");
        sink.data(b"c").expect("writes");
        sink.out.seek(SeekFrom::Start(1)).expect("seeks");
        sink.hole(1).expect("writes zeros");
        let meta = file.as_file().metadata().expect("metadata");
        assert_eq!(meta.len(), (64 << 20) + 3);
        assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
        let content = std::fs::read(file.path()).expect("reads");
        assert_eq!((content[0], content[1], content[content.len() - 1]), (b'a', 0, b'c'));
    }
}
