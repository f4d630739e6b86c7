//! The memory of vars and gradients, borrowed for one step.
//!
//! candle lends a var's memory for writing to an [`InplaceOp1`] alone, while it runs. So the ops nest: each calls for the next var and
//! hands on what it was lent, and the innermost has all of it. Every level takes a piece of the stack.

use std::cell::Cell;
use std::panic::resume_unwind;
use std::thread;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp1, Layout, Storage, StorageRef, Tensor, Var};
use optim_core::{Grad, ParamMut, Parameter};

use crate::{Error, Result};

/// The most vars that are locked on the caller's stack; more get a thread, and so a stack, of their own.
const ON_CALLERS_STACK: usize = 128;

/// The stack that one var takes, with room to spare in a build without optimization. The system lends only what is used of it.
const STACK_PER_VAR: usize = 16 << 10;

/// The stack for all that is not nested.
const STACK: usize = 1 << 20;

/// Calls `run` with the memory of all vars, each locked until it returns. No var may be there twice: it would wait for itself.
pub(crate) fn lock<R: Send>(vars: &[Var], run: impl FnOnce(&mut [ParamMut<'_>]) -> R + Send) -> Result<R> {
    if vars.len() <= ON_CALLERS_STACK {
        return lock_here(vars, run);
    }
    let bytes = STACK + vars.len() * STACK_PER_VAR;
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(bytes).spawn_scoped(scope, || lock_here(vars, run));
        let thread = thread.map_err(|source| Error::Stack { vars: vars.len(), bytes, source })?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn lock_here<R>(vars: &[Var], run: impl FnOnce(&mut [ParamMut<'_>]) -> R) -> Result<R> {
    let (run, result) = (Cell::new(Some(run)), Cell::new(None));
    lock_next(vars, Vec::with_capacity(vars.len()), &|memory| result.set(run.take().map(|run| run(memory))))?;
    Ok(result.into_inner().expect("locking ends with the call or an error"))
}

/// Locks the vars one inside the other, behind those whose memory is `held`, and calls `run` at the end.
fn lock_next(vars: &[Var], mut held: Vec<ParamMut<'_>>, run: &dyn Fn(&mut [ParamMut<'_>])) -> candle_core::Result<()> {
    match vars {
        [] => {
            run(&mut held);
            Ok(())
        }
        [var, rest @ ..] => var.inplace_op1(&Lock { held: Cell::new(held), rest, run }),
    }
}

/// Holds one var's memory while the rest is locked.
struct Lock<'a> {
    held: Cell<Vec<ParamMut<'a>>>,
    rest: &'a [Var],
    run: &'a dyn Fn(&mut [ParamMut<'_>]),
}

impl InplaceOp1 for Lock<'_> {
    fn name(&self) -> &'static str {
        "optimizer-step"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let mut held: Vec<ParamMut<'_>> = self.held.take();
        let Some(memory) = param(storage, layout) else {
            candle_core::bail!("{}: var {} is no longer what it was", self.name(), held.len())
        };
        held.push(memory);
        lock_next(self.rest, held, self.run)
    }
}

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
    std::ptr::from_ref::<Storage>(&tensor.storage_and_layout().0).addr()
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
