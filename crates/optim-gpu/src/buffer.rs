//! Memory on the device, the backend's own or the caller's.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use half::{bf16, f16};
use optim_core::{DType, DeviceMemory, Error, Result};

use crate::device::Context;
use crate::layout::{ALIGNMENT, Layout, bytes};
use crate::transfer::Region;

/// What buffers of ours are used for.
pub(crate) const USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

/// What the elements of a [`GpuBuffer`] are on the host: `f32`, `f16` or `bf16`.
pub trait Real: bytemuck::Pod + sealed::Sealed {
    /// The element type.
    const DTYPE: DType;
}

mod sealed {
    #[allow(unnameable_types, reason = "so that nobody else implements it")]
    pub trait Sealed {}
}

macro_rules! reals {
    ($($real:ty => $dtype:ident),*) => {$(
        impl sealed::Sealed for $real {}
        impl Real for $real {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}
reals!(f32 => F32, f16 => F16, bf16 => Bf16);

/// Elements on a device: a parameter or a gradient. A cheap handle; clones are the same memory.
///
/// It is made by a [`GpuBackend`](crate::GpuBackend) (`buffer`, `zeros`, `arena`), or from the caller's own `wgpu::Buffer` by
/// [`GpuBackend::wrap`](crate::GpuBackend::wrap) or [`GpuBuffer::from_wgpu`]; those whose name ends in `_of` make elements of
/// `f16` or `bf16`, of which two lie in a word, the first in its low half.
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
    pub(crate) dtype: DType,
    /// Whether what follows, up to the next multiple of 256 bytes, is ours and zero.
    pub(crate) padded: bool,
    pub(crate) home: Option<Arc<Context>>,
}

impl GpuBuffer {
    /// `len` elements of `f32` in the caller's buffer, from a byte offset on.
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
        Self::from_wgpu_of(DType::F32, buffer, offset, len)
    }

    /// As [`from_wgpu`](Self::from_wgpu), of another element type. An odd number of 16-bit elements ends in the middle of a word,
    /// which must lie in the buffer; its other half stays as it is.
    ///
    /// # Errors
    /// As [`from_wgpu`](Self::from_wgpu).
    pub fn from_wgpu_of(dtype: DType, buffer: wgpu::Buffer, offset: u64, len: usize) -> Result<Self> {
        Self::foreign(dtype, buffer, offset, len, bytes(ALIGNMENT), None)
    }

    pub(crate) fn foreign(
        dtype: DType,
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
        let size = (len as u64).checked_mul(dtype.size() as u64).and_then(|size| size.checked_next_multiple_of(4));
        let end = size.and_then(|size| size.checked_add(offset));
        if end.is_none_or(|end| end > buffer.size()) {
            let expected = format!("at least {len} elements from byte {offset} on");
            return needs(expected, format!("a buffer of {} bytes", buffer.size()));
        }
        Ok(Self { buffer, offset, len, dtype, padded: false, home })
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
    /// [`Error::DType`] for elements that are not `f32`; [`Error::Memory`] for a buffer without the usage `COPY_SRC`, or from
    /// [`from_wgpu`](Self::from_wgpu); what the device returns.
    pub fn read(&self) -> Result<Vec<f32>> {
        self.read_of()
    }

    /// As [`read`](Self::read), of another element type.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_of<T: Real>(&self) -> Result<Vec<T>> {
        self.expect(T::DTYPE)?;
        let home = self.accessible(wgpu::BufferUsages::COPY_SRC)?;
        home.ready()?;
        let mut values = vec![T::zeroed(); self.len];
        home.read(&[self.region()], bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Replaces the elements. It does not wait: what is submitted later sees the new ones.
    ///
    /// # Errors
    /// [`Error::DType`] for elements that are not `f32`; [`Error::Length`]; [`Error::Memory`] for a buffer without the usage
    /// `COPY_DST`, or from [`from_wgpu`](Self::from_wgpu); what the device returns.
    pub fn write(&self, values: &[f32]) -> Result<()> {
        self.write_of(values)
    }

    /// As [`write`](Self::write), of another element type. Where an odd number of 16-bit elements lies in a buffer of the caller's,
    /// it waits for the device, and needs the usage `COPY_SRC` as well: it reads the last word, of which half is not its own.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_of<T: Real>(&self, values: &[T]) -> Result<()> {
        self.expect(T::DTYPE)?;
        let home = self.accessible(wgpu::BufferUsages::COPY_DST)?;
        home.ready()?;
        let (expected, got) = (self.len, values.len());
        if got != expected {
            return Err(Error::Length { what: "buffer", name: "GpuBuffer".into(), expected, got });
        }
        let values: &[u8] = bytemuck::cast_slice(values);
        let whole = values.len() / 4 * 4;
        let mut uploads = vec![(Region { size: whole, ..self.region() }, &values[..whole])];
        let mut word = [0; 4];
        if whole < values.len() {
            let last = Region { offset: self.offset + whole as u64, size: 4, ..self.region() };
            if !self.padded {
                self.accessible(wgpu::BufferUsages::COPY_SRC)?.read(&[last], &mut word)?;
            }
            word[..2].copy_from_slice(&values[whole..]);
            uploads.push((last, &word));
        }
        let mut encoder = home.encoder()?;
        home.upload(&mut encoder, &uploads)?;
        home.submit([encoder])?;
        Ok(())
    }

    fn expect(&self, expected: DType) -> Result<()> {
        if self.dtype != expected {
            return Err(Error::DType { what: "buffer", name: "GpuBuffer".into(), expected, got: self.dtype });
        }
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
        Region { buffer: &self.buffer, offset: self.offset, size: self.size() }
    }

    /// The bytes of the words in which the elements lie.
    pub(crate) fn size(&self) -> usize {
        (self.len * self.dtype.size()).next_multiple_of(4)
    }

    /// Whether it is the same memory.
    pub(crate) fn same(&self, other: &Self) -> bool {
        let key = |buffer: &Self| (buffer.offset, buffer.len, buffer.dtype, buffer.padded);
        key(self) == key(other) && self.buffer == other.buffer
    }
}

impl DeviceMemory for GpuBuffer {
    fn len(&self) -> usize {
        self.len
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn to_host(&self) -> Result<Vec<f32>> {
        match self.dtype {
            DType::F16 => Ok(self.read_of::<f16>()?.iter().map(|value| value.to_f32()).collect()),
            DType::Bf16 => Ok(self.read_of::<bf16>()?.iter().map(|value| value.to_f32()).collect()),
            DType::F32 => self.read(),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl fmt::Debug for GpuBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuBuffer")
            .field("dtype", &self.dtype)
            .field("offset", &self.offset)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Context {
    /// One buffer for each page of so many bytes, zero.
    pub(crate) fn pages(&self, sizes: impl IntoIterator<Item = u64>, label: &str) -> Result<Vec<wgpu::Buffer>> {
        let page = |(page, size)| self.create_buffer(&format!("{label}, page {page}"), size, USAGE, false);
        sizes.into_iter().enumerate().map(page).collect()
    }

    /// Tensors in few buffers, zero.
    pub(crate) fn arena(self: &Arc<Self>, dtype: DType, lens: &[usize]) -> Result<Vec<GpuBuffer>> {
        // Elements in as many bytes.
        let elements = |words: usize| words * (4 / dtype.size());
        let got = self.limits.max_buffer_size;
        // Before the layout, which would be as long.
        let padded = |&len: &usize| {
            let blocks = len.max(1).div_ceil(elements(ALIGNMENT)) as u64;
            blocks.saturating_mul(bytes(ALIGNMENT))
        };
        if let Some(expected) = lens.iter().map(padded).find(|&size| size > got) {
            return Err(Error::DeviceLimit { what: "max_buffer_size", expected, got });
        }
        let size = |elements: usize| (elements * dtype.size()) as u64;
        let layout = Layout::aligned(lens.iter().copied(), elements(self.window), elements(ALIGNMENT));
        let mut pages: Vec<Option<wgpu::Buffer>> = vec![None; layout.pages.len()];
        let mut tensors = Vec::with_capacity(lens.len());
        for (pieces, &len) in layout.tensors().zip(lens) {
            let (offset, buffer) = match pieces {
                [piece] => {
                    let page = &mut pages[piece.page];
                    if page.is_none() {
                        *page = Some(self.create_buffer("arena", size(layout.pages[piece.page]), USAGE, false)?);
                    }
                    (size(piece.offset), page.clone())
                }
                _ => (0, None),
            };
            // A tensor without elements, or longer than a window, has a buffer of its own.
            let buffer = match buffer {
                Some(buffer) => buffer,
                None => {
                    let padded = len.max(1).next_multiple_of(elements(ALIGNMENT));
                    self.create_buffer("tensor", size(padded), USAGE, false)?
                }
            };
            tensors.push(GpuBuffer { buffer, offset, len, dtype, padded: true, home: Some(Arc::clone(self)) });
        }
        Ok(tensors)
    }
}
