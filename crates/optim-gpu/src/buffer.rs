//! Memory on the device, the backend's own or the caller's.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use optim_core::{DType, DeviceMemory, Error, Result};

use crate::device::Context;
use crate::layout::{ALIGNMENT, Layout, bytes};
use crate::transfer::Region;

/// What buffers of ours are used for.
pub(crate) const USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

/// `f32` elements on a device: a parameter or a gradient. A cheap handle; clones are the same memory.
///
/// It is made by a [`GpuBackend`](crate::GpuBackend) (`buffer`, `zeros`, `arena`), or from the caller's own `wgpu::Buffer` by
/// [`GpuBackend::wrap`](crate::GpuBackend::wrap) or [`GpuBuffer::from_wgpu`].
///
/// ```no_run
/// use optim_gpu::GpuBackend;
///
/// # fn main() -> optim_core::Result<()> {
/// let gpu = GpuBackend::new()?;
/// let weight = gpu.buffer(&[1.0, 2.0, 3.0])?;
/// weight.write(&[4.0, 5.0, 6.0])?;
/// assert_eq!(weight.read()?, [4.0, 5.0, 6.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct GpuBuffer {
    pub(crate) buffer: wgpu::Buffer,
    /// In bytes.
    pub(crate) offset: u64,
    pub(crate) len: usize,
    /// Whether what follows, up to the next multiple of [`ALIGNMENT`], is ours and zero.
    pub(crate) padded: bool,
    pub(crate) home: Option<Arc<Context>>,
}

impl GpuBuffer {
    /// `len` elements of the caller's buffer, from a byte offset on.
    ///
    /// The offset must be a multiple of 256, which every device accepts, and the buffer must have the usage `STORAGE`.
    /// Elements outside of the range are never touched. A parameter and its gradient must lie in different buffers: wgpu does
    /// not let a kernel read and write one buffer, even in separate ranges.
    ///
    /// That the buffer belongs to the device which will use it is checked at the first step. A buffer of another *instance*
    /// of wgpu cannot be recognized: instances number their buffers alike, so another buffer would be written to.
    ///
    /// The result is not tied to a device, so it cannot be read or written from the host:
    /// [`GpuBackend::wrap`](crate::GpuBackend::wrap) makes one that can be.
    ///
    /// # Errors
    /// [`Error::Memory`] that says what was expected.
    pub fn from_wgpu(buffer: wgpu::Buffer, offset: u64, len: usize) -> Result<Self> {
        Self::foreign(buffer, offset, len, bytes(ALIGNMENT), None)
    }

    pub(crate) fn foreign(
        buffer: wgpu::Buffer,
        offset: u64,
        len: usize,
        alignment: u64,
        home: Option<Arc<Context>>,
    ) -> Result<Self> {
        let needs = |expected: String, got: String| {
            Err(Error::Memory { what: "buffer", name: "wgpu::Buffer".into(), expected, got })
        };
        if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return needs("usage STORAGE".into(), format!("{:?}", buffer.usage()));
        }
        if !offset.is_multiple_of(alignment) {
            return needs(format!("an offset that is a multiple of {alignment} bytes"), format!("{offset}"));
        }
        let end = (len as u64).checked_mul(4).and_then(|size| size.checked_add(offset));
        if end.is_none_or(|end| end > buffer.size()) {
            let expected = format!("at least {len} elements from byte {offset} on");
            return needs(expected, format!("a buffer of {} bytes", buffer.size()));
        }
        Ok(Self { buffer, offset, len, padded: false, home })
    }

    /// The underlying buffer.
    #[must_use]
    pub fn wgpu(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// The byte at which the elements begin in [`wgpu`](Self::wgpu).
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// A copy of the elements. Waits for the device: everything that was submitted before is seen.
    ///
    /// # Errors
    /// [`Error::Memory`] for a buffer without the usage `COPY_SRC`, or from [`from_wgpu`](Self::from_wgpu); what the device
    /// returns.
    pub fn read(&self) -> Result<Vec<f32>> {
        let home = self.accessible(wgpu::BufferUsages::COPY_SRC)?;
        home.ready()?;
        home.read(&[self.region()], self.len)
    }

    /// Replaces the elements. It does not wait: what is submitted later sees the new ones.
    ///
    /// # Errors
    /// [`Error::Length`]; [`Error::Memory`] for a buffer without the usage `COPY_DST`, or from
    /// [`from_wgpu`](Self::from_wgpu); what the device returns.
    pub fn write(&self, values: &[f32]) -> Result<()> {
        let home = self.accessible(wgpu::BufferUsages::COPY_DST)?;
        home.ready()?;
        let (expected, got) = (self.len, values.len());
        if got != expected {
            return Err(Error::Length { what: "buffer", name: "GpuBuffer".into(), expected, got });
        }
        let mut encoder = home.encoder()?;
        home.upload(&mut encoder, &[(self.region(), values)])?;
        home.submit(encoder)?;
        Ok(())
    }

    fn accessible(&self, usage: wgpu::BufferUsages) -> Result<&Arc<Context>> {
        let error =
            |expected: String, got: String| Error::Memory { what: "buffer", name: "GpuBuffer".into(), expected, got };
        if !self.buffer.usage().contains(usage) {
            return Err(error(format!("usage {usage:?}"), format!("{:?}", self.buffer.usage())));
        }
        let untied = || error("a buffer tied to a backend (`GpuBackend::wrap`)".into(), "one from `from_wgpu`".into());
        self.home.as_ref().ok_or_else(untied)
    }

    fn region(&self) -> Region<'_> {
        Region { buffer: &self.buffer, offset: self.offset, span: self.len }
    }

    /// Whether it is the same memory.
    pub(crate) fn same(&self, other: &Self) -> bool {
        (self.offset, self.len, self.padded) == (other.offset, other.len, other.padded) && self.buffer == other.buffer
    }
}

impl DeviceMemory for GpuBuffer {
    fn len(&self) -> usize {
        self.len
    }

    fn dtype(&self) -> DType {
        DType::F32
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl fmt::Debug for GpuBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuBuffer").field("offset", &self.offset).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Context {
    /// One buffer for each page of a layout, zero.
    pub(crate) fn pages(&self, layout: &Layout, label: &str) -> Result<Vec<wgpu::Buffer>> {
        let page = |(page, &len): (usize, &usize)| {
            self.create_buffer(&format!("{label}, page {page}"), bytes(len), USAGE, false)
        };
        layout.pages.iter().enumerate().map(page).collect()
    }

    /// Tensors in few buffers, zero, with the page layout of an engine's slots.
    pub(crate) fn arena(self: &Arc<Self>, lens: &[usize]) -> Result<Vec<GpuBuffer>> {
        let layout = Layout::new(lens.iter().copied(), self.window);
        let mut pages: Vec<Option<wgpu::Buffer>> = vec![None; layout.pages.len()];
        let mut tensors = Vec::with_capacity(lens.len());
        for (pieces, &len) in layout.tensors().zip(lens) {
            let (offset, buffer) = match pieces {
                [piece] => {
                    let page = &mut pages[piece.page];
                    if page.is_none() {
                        *page = Some(self.create_buffer("arena", bytes(layout.pages[piece.page]), USAGE, false)?);
                    }
                    (bytes(piece.offset), page.clone())
                }
                _ => (0, None),
            };
            // A tensor without elements, or longer than a window, has a buffer of its own.
            let buffer = match buffer {
                Some(buffer) => buffer,
                None => self.create_buffer("tensor", bytes(len.max(1).next_multiple_of(ALIGNMENT)), USAGE, false)?,
            };
            tensors.push(GpuBuffer { buffer, offset, len, padded: true, home: Some(Arc::clone(self)) });
        }
        Ok(tensors)
    }
}
