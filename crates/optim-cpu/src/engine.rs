//! One optimizer's state, and the walks of an update.

use std::mem;
use std::ops::Range;
use std::sync::Arc;

use half::f16;
use optim_core::backend::{Engine, FROZEN, Part, Plan, Progress, Record, SlotFormat, Update, wrong_memory};
use optim_core::format;
use optim_core::guard::{Control, Guard, Measured, Verdict, decide};
use optim_core::{DType, Error, Grad, ParamMut, Result, Values, compressed};
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::arena::{self, ACCUMULATED, Arena, EMA, KEPT, KINDS, Layout, MASTER, SLOTS, SUMS};
use crate::drive::{self, Batch, Cuts, Order, Piece, Pieces};
use crate::factored::Rooms;
use crate::form::Form;
use crate::kernel::{Kernels, Norms, Opened, Slots, Update as Kernel};
use crate::pool::Pool;
use crate::reduce::{self, Columns, SLICE, Sums};
use crate::rows::{self, Rows};
use crate::rules::{self, lars};
use crate::shape::Shape;
use crate::storage::{self, floats, floats_mut, numbers_mut};
use crate::units::{self, Row};
use crate::walk::{self, BLOCK, Blocks, Gradient, Space, View, each_block, scaled};
use crate::{factored, guard};

/// One optimizer's state, and what an update works with.
#[derive(Debug)]
pub struct CpuEngine {
    memory: Memory,
    /// Of each rule.
    kernels: Vec<Kernels>,
    control: Control,
    /// Whether averages are in the parameters' memory.
    swapped: bool,
    now: Now,
    group_of: Vec<u32>,
    measured: Vec<Measured>,
    group_norms: Arc<[f32]>,
}

/// The state, and the plan by which memory is cut into tasks.
#[derive(Debug)]
struct Memory {
    forms: Vec<Form>,
    layout: Layout,
    arenas: [Arena; KINDS],
    cuts: Cuts,
    /// The parameters with a factored rule that several tasks share.
    shared: Vec<usize>,
    rooms: Rooms,
    /// Whether the current update is not shared.
    alone: bool,
    /// Of the next walk over a batch.
    order: Order,
    pool: Pool,
}

/// What the current update is made of.
#[derive(Debug)]
struct Now {
    records: Vec<Record>,
    /// The gradients of listed rows, and where each parameter's begin.
    row_grads: Vec<f32>,
    row_starts: Vec<usize>,
    /// The numbers of each row of each parameter, and where each parameter's begin. Made when they are first needed.
    units: Vec<Row>,
    unit_starts: Vec<usize>,
}

impl CpuEngine {
    pub(crate) fn new(plan: &Plan<'_>, pool: Option<Arc<ThreadPool>>, threads: usize) -> Result<Self> {
        let forms: Vec<Form> = plan.tensors.iter().map(|tensor| Form::new(plan, tensor)).collect();
        let mut unit_starts = vec![0];
        unit_starts.extend(forms.iter().scan(0, |end, form| {
            *end += form.tensor.rows().0;
            Some(*end)
        }));
        let row_starts = vec![0; forms.len() + 1];
        Ok(Self {
            kernels: plan.rules.iter().map(rules::kernels).collect(),
            control: Control::default(),
            swapped: false,
            now: Now { records: Vec::new(), row_grads: Vec::new(), row_starts, units: Vec::new(), unit_starts },
            group_of: plan.tensors.iter().map(|tensor| u32::try_from(tensor.group).unwrap_or(u32::MAX)).collect(),
            measured: vec![Measured::default(); forms.len()],
            group_norms: vec![0.0; plan.groups].into(),
            memory: Memory::new(forms, pool, threads)?,
        })
    }

    /// The state's memory: for each parameter its slots, their scales, master and average, those that there are.
    pub fn state_mut(&mut self) -> Vec<Vec<&mut [u8]>> {
        let Memory { layout, arenas, forms, .. } = &mut self.memory;
        let mut state: Vec<_> = forms.iter().map(|_| Vec::new()).collect();
        for (kind, arena) in arenas.iter_mut().enumerate().take(EMA + 1) {
            let (mut rest, mut done) = (arena.all_mut(), 0);
            for (param, arrays) in
                state.iter_mut().enumerate().filter(|(param, _)| !layout.range(kind, *param).is_empty())
            {
                let range = layout.range(kind, param);
                let (before, after) = mem::take(&mut rest).split_at_mut(range.end - done);
                arrays.push(&mut before[range.start - done..]);
                (rest, done) = (after, range.end);
            }
        }
        state
    }

    /// Makes the arrays that this update needs and that were not needed before.
    fn prepare(&mut self, update: &Update<'_>, grads: &[Grad<'_>]) -> Result<()> {
        let sums = update.guard.is_some()
            || update.records.iter().any(|record| record.trust.is_some())
            || self.kernels.iter().any(Kernels::has_sums);
        if sums {
            self.memory.make(SUMS)?;
        }
        if grads.iter().any(|grad| matches!(grad, Grad::Accumulated)) {
            self.memory.make(ACCUMULATED)?;
        }
        let rows = self.now.unit_starts.last().copied().unwrap_or_default();
        if update.records.iter().any(Record::needs_rows) && self.now.units.len() < rows {
            self.now.units.resize(rows, Row { factor: 1.0, mean: 0.0 });
        }
        Ok(())
    }

    /// Measures all gradients and decides; completes the records.
    fn decide(
        &mut self,
        guard: &Guard,
        update: &Update<'_>,
        params: &mut [ParamMut<'_>],
        grads: &[Grad<'_>],
    ) -> Verdict {
        let Self { memory, now, measured, .. } = self;
        let factor = guard.factor * (1.0 / self.control.scale);
        for batch in 0..memory.cuts.batches.len() {
            memory.order = Order::Forward;
            memory.walk(batch, now, update, params, grads, |_, _, _, gradient, piece, space| {
                if let Gradient::Dense(..) = gradient {
                    guard::measure(&gradient, factor, piece.len, piece_sums(piece), space);
                }
            });
        }
        totals(memory, now, factor, update.record_of, measured, grads);
        decide(guard, &mut self.control, measured, &self.group_of, &mut now.records, &mut self.group_norms)
    }

    /// Measures those parameters of a batch that have to be, and updates all of it.
    fn update_batch(&mut self, batch: usize, update: &Update<'_>, params: &mut [ParamMut<'_>], grads: &[Grad<'_>]) {
        let range = self.memory.cuts.batches[batch].params.clone();
        self.memory.order = if update.guard.is_some() { Order::Backward } else { Order::Forward };
        if self.now.records.iter().any(|record| record.trust.is_some()) {
            self.measure_trust(batch, update, params, grads);
        }
        if self.now.records.iter().any(Record::needs_rows) {
            self.memory.measure_rows(batch, &mut self.now, update, params, grads);
        }
        self.now.shape_rows(&range, &self.memory, update, params);
        if self.kernels.iter().any(|kernels| kernels.norms.is_some()) {
            self.measure_norms(batch, update, params, grads);
        }
        // Alone, the calling thread has all of each parameter.
        if !self.memory.alone && !self.memory.shared.is_empty() {
            self.measure_factored(batch, update, params, grads);
        }
        let Self { memory, now, kernels, .. } = self;
        memory.walk(batch, now, update, params, grads, |form, record, shape, gradient, piece, space| {
            let measured = record.trust.is_some() || kernels[form.tensor.rule].norms.is_some();
            if !(measured && goes_at_once(form, record, matches!(gradient, Gradient::Rows(_)))) {
                apply(kernels, update, form, record, shape, gradient, piece, space);
            }
        });
    }

    /// Measures what trust ratios are made of; completes the records, or updates at once.
    fn measure_trust(&mut self, batch: usize, update: &Update<'_>, params: &mut [ParamMut<'_>], grads: &[Grad<'_>]) {
        let Self { memory, now, kernels, .. } = self;
        memory.walk(batch, now, update, params, grads, |form, record, _, gradient, piece, space| {
            if !record.trust.is_some() {
                return;
            }
            let add = |p: &[f32], g: &[f32], _: &mut Slots<'_>, sums: &mut Columns| lars::measure(p, g, sums);
            measure(form, lars::TERMS, &Shape::before_rows(record), gradient, piece, space, add);
            if goes_at_once(form, record, matches!(gradient, Gradient::Rows(_))) {
                let mut record = *record;
                lars::finish(&record.trust, &mut record.shaping, reduce::total(piece_sums(piece)));
                let shape = Shape::new(&record, &[], form.width);
                apply(kernels, update, form, &record, &shape, gradient, piece, space);
            }
        });
        for param in updated(memory.cuts.batches[batch].params.clone(), update, grads) {
            let record = &mut now.records[update.record_of[param] as usize];
            if record.trust.is_some()
                && !goes_at_once(&memory.forms[param], record, matches!(grads[param], Grad::Rows(..)))
            {
                lars::finish(&record.trust, &mut record.shaping, reduce::total(memory.sums_mut(param)));
            }
        }
    }

    /// Measures what rules with [norms](Norms) need; completes the records, or updates at once.
    fn measure_norms(&mut self, batch: usize, update: &Update<'_>, params: &mut [ParamMut<'_>], grads: &[Grad<'_>]) {
        let Self { memory, now, kernels, .. } = self;
        memory.walk(batch, now, update, params, grads, |form, record, shape, gradient, piece, space| {
            let Some(Norms { terms, measure: add, finish, .. }) = kernels[form.tensor.rule].norms else { return };
            let add = |p: &[f32], g: &[f32], slots: &mut Slots<'_>, sums: &mut Columns| {
                add(&record.scalars, p, g, slots, sums)
            };
            measure(form, terms, shape, gradient, piece, space, add);
            if goes_at_once(form, record, matches!(gradient, Gradient::Rows(_))) {
                let mut record = *record;
                finish(&mut record.scalars, reduce::total(piece_sums(piece)));
                apply(kernels, update, form, &record, shape, gradient, piece, space);
            }
        });
        for param in updated(memory.cuts.batches[batch].params.clone(), update, grads) {
            let (form, record) = (&memory.forms[param], &mut now.records[update.record_of[param] as usize]);
            let Some(norms) = kernels[form.tensor.rule].norms else { continue };
            if !goes_at_once(form, record, matches!(grads[param], Grad::Rows(..))) {
                (norms.finish)(&mut record.scalars, reduce::total(memory.sums_mut(param)));
            }
        }
    }

    /// Measures those parameters with a factored rule that several tasks share; completes the records.
    fn measure_factored(&mut self, batch: usize, update: &Update<'_>, params: &mut [ParamMut<'_>], grads: &[Grad<'_>]) {
        let Self { memory, now, .. } = self;
        memory.walk(batch, now, update, params, grads, |form, record, shape, gradient, piece, space| {
            if form.factored && piece.len < form.len {
                factored::measure(form, record, shape, gradient, piece, space);
            }
        });
        for param in updated(memory.cuts.batches[batch].params.clone(), update, grads) {
            if memory.shared.binary_search(&param).is_ok() {
                let record = &mut now.records[update.record_of[param] as usize];
                let sums = reduce::total(memory.sums_mut(param));
                factored::finish(&mut record.scalars, sums, memory.forms[param].len);
            }
        }
    }
}

impl Memory {
    fn new(mut forms: Vec<Form>, pool: Option<Arc<ThreadPool>>, threads: usize) -> Result<Self> {
        let (layout, pool) = (Layout::new(&forms), Pool::new(pool));
        let cuts = Cuts::new(&forms, &layout, threads);
        forms.iter_mut().zip(cuts.at_once(&layout)).for_each(|(form, at_once)| form.at_once = at_once);
        let mut shared: Vec<_> = cuts.inside().filter(|&param| forms[param].factored).collect();
        shared.dedup();
        let rooms = Rooms::new(&forms, threads)?;
        let alone = !cuts.wakes;
        let (order, arenas) = (Order::Forward, Default::default());
        let mut memory = Self { forms, layout, alone, order, cuts, shared, rooms, pool, arenas };
        let mut needed = (0..KINDS).filter(|kind| ![ACCUMULATED, KEPT, SUMS].contains(kind));
        needed.try_for_each(|kind| memory.make(kind))?;
        memory.fill();
        Ok(memory)
    }

    /// Makes an array, unless it is there.
    fn make(&mut self, kind: usize) -> Result<()> {
        if self.arenas[kind].all().is_empty() {
            self.arenas[kind] = Arena::new(self.layout.end(kind))?;
        }
        Ok(())
    }

    /// A parameter's bytes in an array.
    fn bytes(&self, kind: usize, param: usize) -> &[u8] {
        self.arenas[kind].all().get(self.layout.range(kind, param)).unwrap_or_default()
    }

    /// A parameter's bytes in an array.
    fn bytes_mut(&mut self, kind: usize, param: usize) -> &mut [u8] {
        self.arenas[kind].all_mut().get_mut(self.layout.range(kind, param)).unwrap_or_default()
    }

    /// The sums of a parameter's slices.
    fn sums_mut(&mut self, param: usize) -> &mut [Sums] {
        numbers_mut(self.bytes_mut(SUMS, param))
    }

    /// Fills the slots with their initial values.
    fn fill(&mut self) {
        for param in 0..self.forms.len() {
            for nth in 0..self.forms[param].slots.len() {
                let form = &self.forms[param];
                let (init, format) = (form.slots[nth].init, form.tensor.slot_format(&form.slots[nth]));
                if init.to_bits() == 0 {
                    continue;
                }
                let bytes = self.bytes_mut(SLOTS + nth, param);
                match format {
                    SlotFormat::F32 => floats_mut(bytes).fill(init),
                    SlotFormat::F16 => {
                        let mut first = [f16::ZERO];
                        compressed::encode(&[init], &mut first);
                        numbers_mut(bytes).fill(first[0]);
                    }
                    SlotFormat::Bf16 => numbers_mut(bytes).fill(format::f32_to_bf16(init)),
                    SlotFormat::Block8(code) => {
                        let scale = format::scale_of(&[init]);
                        bytes.fill(code.encode(init, scale, 0));
                        floats_mut(self.bytes_mut(arena::kind(Part::Scales(nth)), param)).fill(scale);
                    }
                }
            }
        }
    }

    /// Works on the memory of all parameters: `work(form, piece, space)`.
    fn each_piece(
        &mut self,
        params: &mut [ParamMut<'_>],
        work: impl Fn(&Form, &mut Piece<'_>, &mut Space) + Send + Sync,
    ) {
        (0..self.cuts.batches.len()).for_each(|batch| self.each_piece_of(batch, params, &work));
    }

    /// Works on the memory of a batch: `work(form, piece, space)`.
    fn each_piece_of(
        &mut self,
        batch: usize,
        params: &mut [ParamMut<'_>],
        work: impl Fn(&Form, &mut Piece<'_>, &mut Space) + Send + Sync,
    ) {
        let Self { forms, layout, arenas, cuts, rooms, alone, order, pool, .. } = self;
        let Batch { params: range, cuts, own } = &cuts.batches[batch];
        let (forms, layout, pieces) = (&**forms, &*layout, Pieces::new(range, layout, params, arenas));
        let work = |piece: &mut Piece<'_>, space: &mut Space| {
            let form = &forms[piece.param];
            if factored::room(form) == 0 {
                return work(form, piece, space);
            }
            space.room = rooms.take();
            work(form, piece, space);
            rooms.give_back(mem::take(&mut space.room));
        };
        if *alone || cuts.is_empty() {
            drive::run(&[], layout, (*order, *own), pieces, &work);
        } else {
            pool.run(|| drive::run(cuts, layout, (*order, *own), pieces, &work));
            pool.stir();
        }
        Pool::done();
    }

    /// Walks over those parameters of a batch that are updated: `work(form, record, shape, gradient, piece, space)`. The next walk goes
    /// backward.
    #[allow(clippy::too_many_arguments, reason = "all that an update is made of")]
    fn walk(
        &mut self,
        batch: usize,
        now: &Now,
        update: &Update<'_>,
        params: &mut [ParamMut<'_>],
        grads: &[Grad<'_>],
        work: impl Fn(&Form, &Record, &Shape<'_>, Gradient<'_>, &mut Piece<'_>, &mut Space) + Send + Sync,
    ) {
        self.each_piece_of(batch, params, |form, piece, space| {
            let param = piece.param;
            let Some(record) = now.records.get(update.record_of[param] as usize) else { return };
            let gradient = match &grads[param] {
                Grad::Accumulated => Gradient::Dense(DType::F32, &*mem::take(&mut piece.arrays[ACCUMULATED])),
                Grad::Rows(..) => {
                    let grads = &now.row_grads[now.row_starts[param]..now.row_starts[param + 1]];
                    Gradient::Rows(Rows { rows: &update.rows[param].rows, grads })
                }
                grad => {
                    let Some((dtype, bytes)) = dense(grad) else { return };
                    let range = scaled(&(piece.element..piece.element + piece.len), dtype.size());
                    Gradient::Dense(dtype, &bytes[range])
                }
            };
            work(form, record, &now.shape(record, form, param), gradient, piece, space);
        });
        self.order = Order::Backward;
    }

    /// Measures the rows of those parameters of a batch for which something is done row by row.
    fn measure_rows(
        &self,
        batch: usize,
        now: &mut Now,
        update: &Update<'_>,
        params: &[ParamMut<'_>],
        grads: &[Grad<'_>],
    ) {
        let Now { records, units, unit_starts, .. } = now;
        let Batch { params: range, cuts, .. } = &self.cuts.batches[batch];
        let (first_unit, end) = (unit_starts[range.start], unit_starts[range.end]);
        let work = |space: &mut Space, index: usize, unit: &mut Row| {
            let param = unit_starts.partition_point(|&start| start <= index) - 1;
            let Some(record) = records.get(update.record_of[param] as usize) else { return };
            let gradient = match &grads[param] {
                Grad::Accumulated => Some((DType::F32, self.bytes(ACCUMULATED, param))),
                grad => dense(grad),
            };
            if let Some((dtype, bytes)) = gradient.filter(|_| record.needs_rows()) {
                let (form, master) = (&self.forms[param], self.bytes(MASTER, param));
                let gradient = Gradient::Dense(dtype, bytes);
                let view = View { form, element: 0, p: host(&params[param]), master, gradient };
                let first = (index - unit_starts[param]) * form.width;
                *unit = units::measure(&view, record, first..first + form.width, space.blocks());
            }
        };
        let units = &mut units[first_unit..end];
        if self.alone || cuts.is_empty() {
            return each_row(units, first_unit, &work);
        }
        let some = |(nth, units): (usize, &mut [Row])| each_row(units, first_unit + nth * ROWS, &work);
        self.pool.run(|| units.par_chunks_mut(ROWS).enumerate().for_each(some));
    }
}

impl Now {
    /// How a parameter's gradient is shaped.
    fn shape(&self, record: &Record, form: &Form, param: usize) -> Shape<'_> {
        let rows = if record.needs_rows() { self.unit_starts[param]..self.unit_starts[param + 1] } else { 0..0 };
        Shape::new(record, &self.units[rows], form.width)
    }

    /// Sums the rows of the row-sparse gradients, of which there are no sums yet.
    fn sum_rows(&mut self, forms: &[Form], update: &Update<'_>, grads: &[Grad<'_>]) {
        for (param, (form, grad)) in forms.iter().zip(grads).enumerate() {
            self.row_starts[param] = self.row_grads.len();
            if let Some((dtype, bytes)) = listed(grad).filter(|_| update.record_of[param] != FROZEN) {
                rows::sum(&update.rows[param], dtype, bytes, form.row(), &mut self.row_grads);
            }
        }
        self.row_starts[forms.len()] = self.row_grads.len();
    }

    /// Shapes those sums of these parameters.
    fn shape_rows(&mut self, range: &Range<usize>, memory: &Memory, update: &Update<'_>, params: &[ParamMut<'_>]) {
        if self.row_grads.is_empty() {
            return;
        }
        let mut block = [0.0; BLOCK];
        for param in range.clone() {
            let form = &memory.forms[param];
            let grads = self.row_starts[param]..self.row_starts[param + 1];
            if grads.is_empty() {
                continue;
            }
            let record = &self.records[update.record_of[param] as usize];
            let (shape, width) = (Shape::new(record, &[], form.width), form.row());
            for (&row, g) in update.rows[param].rows.iter().zip(self.row_grads[grads].chunks_mut(width)) {
                let first = row as usize * width;
                each_block(first..first + width, |range| {
                    let p = walk::read(form, host(&params[param]), memory.bytes(MASTER, param), &range, &mut block);
                    shape.apply(range.start, &mut g[range.start - first..range.end - first], p);
                });
            }
        }
    }
}

impl Engine for CpuEngine {
    fn begin(&mut self) {
        if self.memory.cuts.wakes {
            self.memory.pool.stir();
        }
    }

    fn update(&mut self, update: &Update<'_>, params: &mut [ParamMut<'_>], grads: &[Grad<'_>]) -> Result<Progress> {
        self.begin();
        let forms = &self.memory.forms;
        check_params(forms, params)?;
        let mut lists_rows = false;
        for ((form, grad), &record) in forms.iter().zip(grads).zip(update.record_of) {
            if record != FROZEN {
                check_grad(form, grad)?;
                lists_rows |= matches!(grad, Grad::Rows(..));
            }
        }
        self.prepare(update, grads)?;
        self.memory.alone = !self.memory.cuts.wakes && !self.memory.pool.is_awake();
        let (alone, pool) = (self.memory.alone, self.memory.pool.clone());
        let used = update.guard.map_or(0..update.records.len(), |guard| {
            let first = self.control.applied.wrapping_sub(guard.first) as usize * guard.records;
            first..first + guard.records
        });
        self.now.records.clear();
        self.now.records.extend_from_slice(&update.records[used]);
        self.now.row_grads.clear();
        if lists_rows {
            self.now.sum_rows(&self.memory.forms, update, grads);
        }

        let mut progress = Progress::Applied;
        let mut run = || {
            if let Some(guard) = update.guard {
                let verdict = self.decide(guard, update, params, grads);
                let skipped = verdict.skip.is_some();
                progress = Progress::Decided(verdict);
                if skipped {
                    return;
                }
            }
            (0..self.memory.cuts.batches.len()).for_each(|batch| self.update_batch(batch, update, params, grads));
        };
        // All walks by one thread of the pool, which is waited for once.
        if alone {
            run();
        } else {
            pool.enter(run);
        }
        Ok(progress)
    }

    fn control(&self) -> Result<Control> {
        Ok(self.control)
    }

    fn set_control(&mut self, control: &Control) -> Result<()> {
        self.control = *control;
        Ok(())
    }

    fn seed(&mut self, seeds: &[bool], params: &mut [ParamMut<'_>]) -> Result<()> {
        check_params(&self.memory.forms, params)?;
        self.memory.each_piece(params, |form, piece, space| {
            if !seeds[piece.param] {
                return;
            }
            let dtype = form.tensor.parameter.dtype();
            let Piece { len, p, arrays, .. } = piece;
            let [master, ema] = [MASTER, EMA].map(|kind| mem::take(&mut arrays[kind]));
            if let Some(format::Master::Split) = form.master {
                master.fill(0);
            }
            let block = &mut space.blocks().p;
            each_block(0..*len, |range| {
                let block = &mut block[..range.len()];
                storage::load(dtype, &p[scaled(&range, dtype.size())], block);
                if let Some(format::Master::F32) = form.master {
                    floats_mut(&mut master[scaled(&range, 4)]).copy_from_slice(block);
                }
                if form.tensor.ema {
                    floats_mut(&mut ema[scaled(&range, 4)]).copy_from_slice(block);
                }
            });
        });
        Ok(())
    }

    fn accumulate(&mut self, weight: f32, fresh: &[bool], grads: &[Grad<'_>]) -> Result<()> {
        for (form, grad) in self.memory.forms.iter().zip(grads) {
            check_grad(form, grad)?;
            if let Grad::Rows(..) = grad {
                let what = format!("accumulating a row-sparse gradient ({:?})", form.name());
                return Err(Error::Unsupported { what, backend: "cpu".into() });
            }
        }
        self.memory.make(ACCUMULATED)?;
        for (param, (grad, &fresh)) in grads.iter().zip(fresh).enumerate() {
            let pool = self.memory.pool.clone();
            let sum = floats_mut(self.memory.bytes_mut(ACCUMULATED, param));
            let Some((dtype, g)) = dense(grad) else {
                if fresh {
                    sum.fill(0.0);
                }
                continue;
            };
            let add = |(sum, g): (&mut [f32], &[u8])| storage::accumulate(weight, fresh, dtype, g, sum);
            if sum.len() <= SLICE {
                add((sum, g));
                continue;
            }
            pool.run(|| {
                sum.par_chunks_mut(SLICE).zip(g.par_chunks(SLICE * dtype.size())).for_each(add);
            });
        }
        Ok(())
    }

    fn swap_ema(&mut self, into: bool, params: &mut [ParamMut<'_>]) -> Result<()> {
        check_params(&self.memory.forms, params)?;
        if into == self.swapped {
            let (what, expected) = match into {
                true => ("the averages are in the parameters' memory", "bring the parameters back first"),
                false => ("the parameters are in their memory", "put the averages there first"),
            };
            return Err(Error::State { what, expected });
        }
        self.memory.make(KEPT)?;
        self.memory.each_piece(params, |form, piece, _| {
            if !form.tensor.ema {
                return;
            }
            let Piece { p, arrays, .. } = piece;
            if into {
                arrays[KEPT].copy_from_slice(p);
                storage::store(form.tensor.parameter.dtype(), floats(arrays[EMA]), p);
            } else {
                p.copy_from_slice(arrays[KEPT]);
            }
        });
        self.swapped = into;
        if !into {
            self.memory.arenas[KEPT] = Arena::default();
        }
        Ok(())
    }

    fn read(&self, parameter: usize, part: Part, first: usize, bytes: &mut [u8]) -> Result<()> {
        let range = self.memory.forms[parameter].bytes(part, first, bytes.len())?;
        bytes.copy_from_slice(&self.memory.bytes(arena::kind(part), parameter)[range]);
        Ok(())
    }

    fn write(&mut self, parameter: usize, part: Part, first: usize, bytes: &[u8]) -> Result<()> {
        let range = self.memory.forms[parameter].bytes(part, first, bytes.len())?;
        self.memory.bytes_mut(arena::kind(part), parameter)[range].copy_from_slice(bytes);
        Ok(())
    }
}

/// What was measured of each gradient. Not in the caller, which waits for other tasks: the workspace is large for a stack.
#[inline(never)]
fn totals(
    memory: &mut Memory,
    now: &Now,
    factor: f32,
    record_of: &[u32],
    measured: &mut [Measured],
    grads: &[Grad<'_>],
) {
    let mut space = Space::default();
    for (param, (measured, grad)) in measured.iter_mut().zip(grads).enumerate() {
        *measured = Measured::default();
        if grad.is_none() || record_of[param] == FROZEN {
            continue;
        }
        let sums = memory.sums_mut(param);
        *measured = if let Grad::Rows(..) = grad {
            let g = &now.row_grads[now.row_starts[param]..now.row_starts[param + 1]];
            let sums = &mut sums[..reduce::slices(g.len())];
            let dense = Gradient::Dense(DType::F32, bytemuck::cast_slice(g));
            guard::measure(&dense, factor, g.len(), sums, &mut space);
            guard::total(sums)
        } else {
            guard::total(sums)
        };
    }
}

/// The rows that a task measures.
const ROWS: usize = 16;

/// Works on rows, of which the first has this index. Not in the caller, which calls itself and other tasks: the workspace is large for
/// a stack.
#[inline(never)]
fn each_row(units: &mut [Row], first: usize, work: &impl Fn(&mut Space, usize, &mut Row)) {
    let mut space = Space::default();
    units.iter_mut().enumerate().for_each(|(index, unit)| work(&mut space, first + index, unit));
}

/// Those of the parameters that are updated.
fn updated(params: Range<usize>, update: &Update<'_>, grads: &[Grad<'_>]) -> impl Iterator<Item = usize> {
    params.filter(|&param| update.record_of[param] != FROZEN && !grads[param].is_none())
}

/// Whether a parameter that is measured before it is updated is so by one task: nothing but its own sums is missing then.
fn goes_at_once(form: &Form, record: &Record, lists_rows: bool) -> bool {
    form.at_once && !record.needs_rows() && !lists_rows
}

/// Updates a piece, of which all that had to be measured has been.
#[allow(clippy::too_many_arguments, reason = "all that an update is made of")]
fn apply(
    kernels: &[Kernels],
    update: &Update<'_>,
    form: &Form,
    record: &Record,
    shape: &Shape<'_>,
    gradient: Gradient<'_>,
    piece: &mut Piece<'_>,
    space: &mut Space,
) {
    let rule = form.tensor.rule;
    match kernels[rule] {
        Kernels { update: Kernel::Factored, .. } => factored::update(form, record, shape, gradient, piece, space),
        // The gradient went into the slots when it was measured.
        Kernels { norms: Some(norms), .. } if form.wide => {
            walk::update(form, record, &Shape::NONE, gradient, piece, space, |_, p, _, _, slots| {
                if let Opened::F32(slots) = slots {
                    (norms.apply)(&record.scalars, p, slots);
                }
            });
        }
        Kernels { update: kernel, .. } => {
            walk::update(form, record, shape, gradient, piece, space, |_, p, g, scaling, slots| {
                kernel.run(&update.rules[rule], &record.scalars, p, g, scaling, slots);
            });
        }
    }
}

/// Sums the first `terms` terms of a piece: `add(p, shaped g, slots, running sums)` those of a row.
fn measure(
    form: &Form,
    terms: usize,
    shape: &Shape<'_>,
    gradient: Gradient<'_>,
    piece: &mut Piece<'_>,
    space: &mut Space,
    add: impl Fn(&[f32], &[f32], &mut Slots<'_>, &mut Columns),
) {
    let (arrays, sums) = piece.arrays.split_at_mut(SUMS);
    let sums = numbers_mut(sums[0]);
    let (slots, others) = arrays.split_at_mut(MASTER);
    let view = View { form, element: piece.element, p: piece.p, master: others[0], gradient };
    let Blocks { p: p_block, g: g_block, slots: blocks, columns } = space.blocks();
    reduce::summed(piece.len, terms, sums, columns, |range, columns| {
        let (p, g) = view.read(shape, range.clone(), p_block, g_block);
        add(p, g, &mut walk::open(form, slots, &range, blocks), columns);
    });
}

/// The sums of a piece's slices.
fn piece_sums<'p>(piece: &'p mut Piece<'_>) -> &'p mut [Sums] {
    numbers_mut(piece.arrays[SUMS])
}

/// A parameter's memory; it has been checked that it is on the host.
fn host<'p>(param: &'p ParamMut<'_>) -> &'p [u8] {
    match param {
        ParamMut::F32(slice) => bytemuck::cast_slice(slice),
        ParamMut::F16(slice) => bytemuck::cast_slice(slice),
        ParamMut::Bf16(slice) => bytemuck::cast_slice(slice),
        _ => unreachable!("the engine takes memory on the host only, and checks"),
    }
}

/// The memory of a gradient that has a value for each element.
fn dense<'g>(grad: &Grad<'g>) -> Option<(DType, &'g [u8])> {
    match *grad {
        Grad::F32(g) => Some((DType::F32, bytemuck::cast_slice(g))),
        Grad::F16(g) => Some((DType::F16, bytemuck::cast_slice(g))),
        Grad::Bf16(g) => Some((DType::Bf16, bytemuck::cast_slice(g))),
        _ => None,
    }
}

/// The values of a row-sparse gradient.
fn listed<'g>(grad: &Grad<'g>) -> Option<(DType, &'g [u8])> {
    match *grad {
        Grad::Rows(_, Values::F32(g)) => dense(&Grad::F32(g)),
        Grad::Rows(_, Values::F16(g)) => dense(&Grad::F16(g)),
        Grad::Rows(_, Values::Bf16(g)) => dense(&Grad::Bf16(g)),
        _ => None,
    }
}

/// An error that names the first parameter whose memory is not on the host.
fn check_params(forms: &[Form], params: &[ParamMut<'_>]) -> Result<()> {
    match forms.iter().zip(params).find(|(_, param)| matches!(param, ParamMut::Device(_))) {
        Some((form, _)) => Err(on_device("parameter", form)),
        None => Ok(()),
    }
}

/// An error if the gradient's memory is not on the host.
fn check_grad(form: &Form, grad: &Grad<'_>) -> Result<()> {
    match grad {
        Grad::Device(_) | Grad::Rows(_, Values::Device(_)) => Err(on_device("gradient", form)),
        _ => Ok(()),
    }
}

/// The error for memory on a device.
fn on_device(what: &'static str, form: &Form) -> Error {
    wrong_memory(what, form.name(), "memory on the host", "memory on a device")
}
