//! Files that are written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use optim_core::state::State;
use optim_core::{Error, Optimizer, Result};

use crate::header;

/// The bytes that are copied at a time.
const CHUNK: usize = 1 << 20;

/// Saves the state of an optimizer to a file, in place of one that is there; how many bytes it has.
///
/// The state is written in pieces, without a copy of it in memory, to a file beside the one that is meant; that is forced to the disk and
/// then takes the other's name. So whatever happens, a crash too, there is the old file or the new one, whole. After a crash a file
/// `.<name>.<process>.<number>.tmp` may be left beside it, which can be removed. The new file has the old one's permissions. A symbolic link is replaced, not followed.
///
/// # Errors
/// [`Error::File`] for what the operating system refuses: the old file is as it was, but where the message says that the new one is
/// in its place and only its directory could not be forced to the disk. Those of [`Optimizer::state`].
pub fn save(optimizer: &mut Optimizer, path: impl AsRef<Path>) -> Result<u64> {
    let path = path.as_ref();
    let state = optimizer.state()?;
    let refuse = |path: &Path, doing: &str, error: io::Error| Error::File {
        path: path.display().to_string(),
        detail: format!("{doing}: {error}"),
    };
    let (mut file, temporary) = loop {
        let Some(temporary) = beside(path) else {
            return Err(refuse(path, "saving", io::Error::new(io::ErrorKind::InvalidInput, "it names no file")));
        };
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Ok(file) => break (file, temporary),
            // Left behind by a process that had this one's number, or another machine's on the same volume.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(refuse(path, &beside_it("creating", &temporary), error)),
        }
    };
    let (name, writing) = (path.display().to_string(), beside_it("writing", &temporary));
    let failed = |doing, error| refuse(path, &beside_it(doing, &temporary), error);
    // Before there is anything to be read.
    let permitted =
        keep_permissions(&file, path).map_err(|error| failed("giving the old file's permissions to", error));
    let saved = permitted.and_then(|()| write_as(&state, &mut file, &name, &writing)).and_then(|len| {
        file.sync_all().map_err(|error| failed("forcing to the disk", error))?;
        drop(file);
        fs::rename(&temporary, path).map_err(|error| refuse(path, "replacing", error))?;
        Ok(len)
    });
    if saved.is_err() {
        // What failed is the error, not that this fails too.
        let _ = fs::remove_file(&temporary);
        return saved;
    }
    match sync_directory(path) {
        // There are directories that may be written to and not opened, and systems that force none to the disk.
        Err(error) if !CANNOT.contains(&error.kind()) => {
            Err(refuse(path, "saved, but forcing its directory to the disk", error))
        }
        _ => saved,
    }
}

/// What a system says that does not force this directory to the disk.
const CANNOT: [io::ErrorKind; 3] =
    [io::ErrorKind::PermissionDenied, io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported];

/// Whoever may not read the old file shall not read the new one.
fn keep_permissions(file: &File, path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(old) if old.is_file() => file.set_permissions(old.permissions()),
        _ => Ok(()),
    }
}

/// What is done to the file that takes another's name at the end.
fn beside_it(doing: &str, temporary: &Path) -> String {
    format!("{doing} {}, beside it", temporary.display())
}

/// A name beside a file that no other save of this process has.
fn beside(path: &Path) -> Option<PathBuf> {
    static SAVES: AtomicU64 = AtomicU64::new(0);
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name()?);
    name.push(format!(".{}.{}.tmp", process::id(), SAVES.fetch_add(1, Ordering::Relaxed)));
    Some(path.with_file_name(name))
}

/// Makes a rename last: the directory is what has changed.
#[cfg(unix)]
fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Directories cannot be forced to the disk here.
#[cfg(not(unix))]
fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Writes a state, as [`save`] does to its file, to anything that takes bytes; how many there were.
///
/// # Errors
/// [`Error::File`] for what the writer refuses, and for a header of more than 100 MB; what reading from the device returns.
pub fn write(state: &State<'_>, to: &mut impl Write) -> Result<u64> {
    write_as(state, to, "the writer of a state", "writing")
}

fn write_as(state: &State<'_>, to: &mut impl Write, name: &str, writing: &str) -> Result<u64> {
    let refuse = |detail: String| Error::File { path: name.to_owned(), detail };
    let arrays = state.arrays();
    let order = header::order(arrays);
    let text =
        header::encode(state.meta(), arrays, &order).map_err(|problem| refuse(format!("{writing}: {problem}")))?;
    let mut len = 0;
    let mut put = |bytes: &[u8]| {
        len += bytes.len() as u64;
        to.write_all(bytes).map_err(|error| refuse(format!("{writing}: {error}")))
    };
    put(&(text.len() as u64).to_le_bytes())?;
    put(&text)?;
    let mut chunk = vec![0; CHUNK];
    for array in order {
        let (size, elements) = (arrays[array].element.size(), arrays[array].elements().unwrap_or_default());
        let most = CHUNK / size;
        for first in (0..elements).step_by(most) {
            let bytes = &mut chunk[..most.min(elements - first) * size];
            state.read(array, first, bytes)?;
            put(bytes)?;
        }
    }
    to.flush().map_err(|error| refuse(format!("{writing}: {error}")))?;
    Ok(len)
}
