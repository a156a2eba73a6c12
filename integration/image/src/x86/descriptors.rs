//! Descriptor tables of each CPU: GDT, TSS with trap stacks, and the per-CPU block.
#![expect(unsafe_code, reason = "loads segment and task registers")]

use alloc::boxed::Box;

use hv_core::{CpuId, PhysAddr};
use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::tables::load_tss;
use x86_64::registers::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

use super::cpu::CpuBlock;
use super::traps;

/// Bytes of one trap stack.
pub const TRAP_STACK_BYTES: u64 = 16 << 10;
/// Trap stacks per CPU: one for most vectors, one for double faults, one for NMI and machine
/// checks.
pub const TRAP_STACKS: u64 = 3;

/// Index in the TSS of the stack of most vectors.
pub(super) const STACK_COMMON: u16 = 0;
/// Index in the TSS of the double-fault stack.
pub(super) const STACK_DOUBLE_FAULT: u16 = 1;
/// Index in the TSS of the stack for what can arrive at any time, even in a trap handler.
pub(super) const STACK_NMI: u16 = 2;

/// The top of a CPU's trap stacks: [`TRAP_STACKS`] times [`TRAP_STACK_BYTES`] below it are theirs.
#[derive(Clone, Copy, Debug)]
pub struct TrapStackTop(pub PhysAddr);

/// What a CPU's registers point to. Lives for ever.
pub(super) struct CpuTables {
    block: CpuBlock,
    gdt: GlobalDescriptorTable,
    code: SegmentSelector,
    data: SegmentSelector,
    task: SegmentSelector,
}

static BOOT_TASK: Once<TaskStateSegment> = Once::new();
static BOOT_TABLES: Once<CpuTables> = Once::new();

fn task_state(stacks: TrapStackTop) -> TaskStateSegment {
    let mut task = TaskStateSegment::new();
    // The task state is packed, so the table is filled in a copy.
    let mut table = task.interrupt_stack_table;
    let mut top = stacks.0.as_u64();
    for stack in [STACK_COMMON, STACK_DOUBLE_FAULT, STACK_NMI] {
        if let Some(slot) = table.get_mut(usize::from(stack)) {
            *slot = VirtAddr::new_truncate(top);
        }
        top = top.wrapping_sub(TRAP_STACK_BYTES);
    }
    task.interrupt_stack_table = table;
    task
}

impl CpuTables {
    fn new(cpu: CpuId, task: &'static TaskStateSegment) -> Self {
        let mut gdt = GlobalDescriptorTable::new();
        let code = gdt.append(Descriptor::kernel_code_segment());
        let data = gdt.append(Descriptor::kernel_data_segment());
        let task = gdt.append(Descriptor::tss_segment(task));
        Self {
            block: CpuBlock::new(cpu),
            gdt,
            code,
            data,
            task,
        }
    }

    /// Tables for a CPU that is to be started. They are never freed.
    pub(super) fn leak(cpu: CpuId, stacks: TrapStackTop) -> &'static Self {
        let task = Box::leak(Box::new(task_state(stacks)));
        Box::leak(Box::new(Self::new(cpu, task)))
    }

    /// Makes the CPU that calls use these tables and the trap handlers.
    ///
    /// # Safety
    /// These tables are loaded once, by the CPU they were made for; their trap stacks are mapped
    /// and not used by anything else.
    pub(super) unsafe fn load(&'static self) {
        self.gdt.load();
        // SAFETY: `code` is the GDT's 64-bit code segment.
        unsafe { CS::set_reg(self.code) };
        // SAFETY: `data` is the GDT's data segment.
        unsafe { SS::set_reg(self.data) };
        // SAFETY: as above.
        unsafe { DS::set_reg(self.data) };
        // SAFETY: as above.
        unsafe { ES::set_reg(self.data) };
        // SAFETY: `task` is the GDT's task segment, whose TSS lives for ever and is not busy: only
        // this CPU loads it.
        unsafe { load_tss(self.task) };
        // SAFETY: the caller promises that no other CPU loads these tables.
        unsafe { self.block.install() };
        traps::load();
    }
}

/// Gives the CPU that booted its tables. Needs no heap.
///
/// # Safety
/// Called once, on the CPU that booted, after [`traps::init`]; the stacks below `stacks` are mapped
/// and used by nothing else.
pub unsafe fn init_boot_cpu(stacks: TrapStackTop) {
    let task = BOOT_TASK.call_once(|| task_state(stacks));
    let tables = BOOT_TABLES.call_once(|| CpuTables::new(CpuId::new(0), task));
    // SAFETY: the caller's promise.
    unsafe { tables.load() };
}
