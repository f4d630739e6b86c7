//! The memory of vars and gradients, borrowed for one step.
//!
//! candle lends a var's memory for writing to an [`InplaceOp1`] alone, while it runs. So the ops nest: each calls for the next var and
//! hands on what it was lent, and the innermost has all of it. Every level takes a piece of the stack.

use std::cell::Cell;
use std::panic::resume_unwind;
use std::ptr;
use std::thread;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp1, Layout, Storage, StorageRef, Tensor, Var};
use optim_core::{Grad, ParamMut, Parameter};

use crate::{Error, Result};

/// The bytes of the caller's stack that locks may take, those of some hundred vars: half of the smallest stack that is usual. The
/// rest gets a thread, and so a stack, of its own.
const CALLERS_ROOM: usize = 512 << 10;

/// The bytes that locks may take of a stack of their own, of which the system lends what is used.
const OWN_ROOM: usize = 15 << 20;

/// The size of such a stack.
const OWN_STACK: usize = OWN_ROOM + (1 << 20);

/// Vars, and the order in which they are locked: that of their addresses, so that optimizers which share vars do not wait for one
/// another.
#[derive(Debug)]
pub(crate) struct Locks {
    vars: Vec<Var>,
    order: Vec<usize>,
}

impl Locks {
    pub(crate) fn new(vars: Vec<Var>) -> Self {
        let mut order: Vec<usize> = (0..vars.len()).collect();
        order.sort_by_cached_key(|&nth| address(&vars[nth]));
        Self { vars, order }
    }

    pub(crate) fn vars(&self) -> &[Var] {
        &self.vars
    }

    /// Calls `run` with the memory of all vars, each locked until it returns. No var may be there twice: it would wait for itself.
    pub(crate) fn lock<R: Send>(&self, run: impl FnOnce(&mut [ParamMut<'_>]) -> R + Send) -> Result<R> {
        let mut result = None;
        let held = self.vars.iter().map(|_| None).collect();
        let stack = Stack::from_here(CALLERS_ROOM);
        lock_next(&self.vars, &self.order, Held { held, run, result: &mut result, stack })?;
        Ok(result.expect("without an error the innermost lock has left a result"))
    }
}

/// What goes from one lock to the next.
struct Held<'a, F, R> {
    /// The memory of the vars that are locked, in the places of the vars.
    held: Vec<Option<ParamMut<'a>>>,
    /// What is to be done with that of all.
    run: F,
    result: &'a mut Option<R>,
    stack: Stack,
}

/// Locks these of the vars one inside the other, beside those that are held, and does what is to be done.
fn lock_next<F, R>(vars: &[Var], order: &[usize], all: Held<'_, F, R>) -> candle_core::Result<()>
where
    F: FnOnce(&mut [ParamMut<'_>]) -> R + Send,
    R: Send,
{
    let [nth, rest @ ..] = order else {
        let mut params: Vec<_> = all.held.into_iter().flatten().collect();
        *all.result = Some((all.run)(&mut params));
        return Ok(());
    };
    if all.stack.has_room() {
        return vars[*nth].inplace_op1(&Lock { all: Cell::new(Some(all)), vars, nth: *nth, rest });
    }
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(OWN_STACK);
        let locking =
            thread.spawn_scoped(scope, || lock_next(vars, order, Held { stack: Stack::from_here(OWN_ROOM), ..all }));
        match locking {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(error) => candle_core::bail!("no thread to lock {} more vars from: {error}", order.len()),
        }
    })
}

/// Holds one var's memory while the rest is locked.
struct Lock<'a, F, R> {
    all: Cell<Option<Held<'a, F, R>>>,
    vars: &'a [Var],
    /// Which var it is.
    nth: usize,
    /// Those that are locked next.
    rest: &'a [usize],
}

impl<F, R> InplaceOp1 for Lock<'_, F, R>
where
    F: FnOnce(&mut [ParamMut<'_>]) -> R + Send,
    R: Send,
{
    fn name(&self) -> &'static str {
        "optimizer-step"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (Some(Held { mut held, run, result, stack }), Some(memory)) = (self.all.take(), param(storage, layout))
        else {
            candle_core::bail!("{}: a var is no longer of the type and length that it had", self.name())
        };
        held[self.nth] = Some(memory);
        lock_next(self.vars, self.rest, Held { held, run, result, stack })
    }
}

/// A piece of the current thread's stack.
#[derive(Clone, Copy)]
struct Stack {
    start: usize,
    room: usize,
}

impl Stack {
    fn from_here(room: usize) -> Self {
        Self { start: stack_pointer(), room }
    }

    fn has_room(self) -> bool {
        self.start.abs_diff(stack_pointer()) < self.room
    }
}

/// About where the stack ends now.
#[inline(always)]
fn stack_pointer() -> usize {
    let here = 0_u8;
    ptr::from_ref(&here).addr()
}

/// What a step takes of a var; `None` if that has been given another storage by an op of someone's own.
fn param<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Option<ParamMut<'a>> {
    let (start, end) = layout.contiguous_offsets()?;
    Some(match storage {
        CpuStorage::F32(values) => values.get_mut(start..end)?.into(),
        CpuStorage::F16(values) => values.get_mut(start..end)?.into(),
        CpuStorage::BF16(values) => values.get_mut(start..end)?.into(),
        _ => return None,
    })
}

/// Where a tensor's storage is. Tensors that share their memory share it too.
pub(crate) fn address(tensor: &Tensor) -> usize {
    ptr::from_ref::<Storage>(&tensor.storage_and_layout().0).addr()
}

/// The gradients of vars, in their order: each shaped as its var, in one piece and outside the vars' memory, which will be locked.
/// `addresses` are the vars', sorted.
pub(crate) fn gradients(
    parameters: &[Parameter],
    vars: &[Var],
    addresses: &[usize],
    grads: &GradStore,
) -> Result<Vec<Option<Tensor>>> {
    let gradient = |(parameter, var): (&Parameter, &Var)| {
        let Some(grad) = grads.get(var) else { return Ok(None) };
        if grad.dims() != var.dims() {
            let (name, expected, got) = (parameter.name().into(), var.dims().into(), grad.dims().into());
            return Err(Error::Shape { name, expected, got });
        }
        let grad = grad.contiguous()?;
        let shared = addresses.binary_search(&address(&grad)).is_ok();
        Ok(Some(if shared { grad.copy()? } else { grad }))
    };
    parameters.iter().zip(vars).map(gradient).collect()
}

/// What a step takes of a gradient while it is read.
pub(crate) fn grad<'a>(name: &str, (storage, layout): &'a (StorageRef<'_>, &Layout)) -> Result<Grad<'a>> {
    let what = "gradient";
    let Storage::Cpu(values) = &**storage else {
        return Err(Error::Device { what, name: name.into(), got: storage.device().location() });
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(Error::Strided { what, name: name.into() });
    };
    match values {
        CpuStorage::F32(values) => Ok(values[start..end].into()),
        CpuStorage::F16(values) => Ok(values[start..end].into()),
        CpuStorage::BF16(values) => Ok(values[start..end].into()),
        _ => Err(Error::DType { what, name: name.into(), got: storage.dtype() }),
    }
}
