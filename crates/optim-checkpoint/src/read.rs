//! Files that are read.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

use optim_core::state::{StateArray, StateMeta, StateSource};
use optim_core::{Error, Result};

use crate::header::{self, Header};

/// A state in the safetensors format, from a file or anything else that can be read at any place. Only the header is in memory.
///
/// ```no_run
/// # use optim_core::{Result, StateSource};
/// # fn example() -> Result<()> {
/// let reader = optim_checkpoint::Reader::open("run.safetensors")?;
/// println!("{} updates of {} parameters", reader.meta().step, reader.meta().parameters.len());
/// # Ok(())
/// # }
/// ```
pub struct Reader<R> {
    from: R,
    /// What errors call it.
    name: String,
    header: Header,
    /// Where the data begins.
    data: u64,
}

impl Reader<File> {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, [`Error::StateFile`] if it is damaged, or no state file of this library.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let name = path.as_ref().display().to_string();
        match File::open(path) {
            Ok(file) => Self::new(file, name),
            Err(error) => Err(Error::File { path: name, detail: format!("opening: {error}") }),
        }
    }
}

impl<R: Read + Seek> Reader<R> {
    /// Checks the header of what stands in `from`, from its start to its end. `name` is what errors call it.
    ///
    /// # Errors
    /// As [`open`](Reader::open).
    pub fn new(mut from: R, name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let refuse = |detail: String| Error::StateFile { path: name.clone(), detail };
        let failed = |error: std::io::Error| file_error(&name, &error);
        let len = from.seek(SeekFrom::End(0)).map_err(failed)?;
        let Some(rest) = len.checked_sub(8) else { return Err(refuse(format!("it has {len} bytes"))) };
        from.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut word = [0; 8];
        from.read_exact(&mut word).map_err(failed)?;
        let header_len = u64::from_le_bytes(word);
        if header_len > rest || header_len > header::MOST_BYTES {
            let most = rest.min(header::MOST_BYTES);
            return Err(refuse(format!("its header should have {header_len} bytes, it can have {most}")));
        }
        let mut text = vec![0; usize::try_from(header_len).unwrap_or_default()];
        from.read_exact(&mut text).map_err(failed)?;
        let header = header::decode(&text, rest - header_len).map_err(refuse)?;
        Ok(Self { from, name, header, data: 8 + header_len })
    }
}

/// What the operating system said while reading.
fn file_error(name: &str, error: &std::io::Error) -> Error {
    let path = name.to_owned();
    match error.kind() {
        ErrorKind::UnexpectedEof => Error::StateFile { path, detail: "it ends early".into() },
        _ => Error::File { path, detail: format!("reading: {error}") },
    }
}

impl<R: Read + Seek> StateSource for Reader<R> {
    fn meta(&self) -> &StateMeta {
        &self.header.meta
    }

    fn arrays(&self) -> &[StateArray] {
        &self.header.arrays
    }

    fn read(&mut self, array: usize, first: usize, bytes: &mut [u8]) -> Result<()> {
        let Header { arrays, starts, .. } = &self.header;
        let within = arrays.get(array).zip(starts.get(array)).and_then(|(array, start)| {
            let begin = first.checked_mul(array.element.size())?;
            let end = begin.checked_add(bytes.len())?;
            let whole = bytes.len().is_multiple_of(array.element.size());
            (whole && end <= array.bytes()?).then_some(self.data + start + u64::try_from(begin).ok()?)
        });
        let Some(place) = within else {
            let (what, expected) = ("reading an array of a state", "ask for whole elements of one of its arrays");
            return Err(Error::State { what, expected });
        };
        let read = self.from.seek(SeekFrom::Start(place)).and_then(|_| self.from.read_exact(bytes));
        read.map_err(|error| file_error(&self.name, &error))
    }
}

impl<R> fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("name", &self.name).field("header", &self.header).finish_non_exhaustive()
    }
}
