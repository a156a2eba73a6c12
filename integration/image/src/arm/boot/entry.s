// Entry of the image: from EL2 with the MMU off to Rust under an identity map.
//
// On entry (arm64 boot protocol, Linux Documentation/arch/arm64/booting.rst): EL2, MMU and data cache off, interrupts
// masked, x0 = physical address of the device tree; QEMU's ELF loader leaves x0 zero and the tree at the start of RAM.
//
// The map: the first 4 TiB onto themselves as device memory in 1 GiB blocks, but for the GiB that the image is in, which
// is ordinary memory in 2 MiB blocks, of which the image's first one is pages: code, constants, data, and no page below
// a stack. paging.rs turns further RAM into ordinary memory.

.section .text.boot, "ax"
.globl _start
_start:
    b boot_start
    nop
    .quad 0x200000                      // text_offset: from the start of RAM
    .quad __image_bytes
    .quad 0x2                           // little endian, 4 KiB pages, near the start of RAM
    .quad 0, 0, 0
    .ascii "ARM\x64"
    .long 0

// Attributes of entries (Arm ARM, D8.3): block or page, attribute index, AP, shareability, accessed, execute never.
.set DEVICE_BLOCK, 0x441                // index 0, AP[1], AF
.set MEMORY_BLOCK, 0x745                // index 1, AP[1], inner shareable, AF
.set MEMORY_PAGE, 0x747
.set READ_ONLY, 0x80                    // AP[2]
.set XN_SHIFT, 54
.set TABLE, 3

boot_start:
    msr daifset, #0xf
    mrs x1, CurrentEL
    cmp x1, #(2 << 2)
    b.ne wrong_level
    adr x1, _start
    ldr x2, =_start                     // where the linker put it: what the image holds addresses for
    cmp x1, x2
    b.ne wrong_place
    mov x20, x0
    // The tables are written past the caches: what those hold of them is older, and must not be written over them.
    bl drop_tables
    msr spsel, #1
    adrp x1, boot_trap_stack_top
    mov sp, x1

    // Level 0: eight entries lead to eight tables of level 1, which lie in a row; the other 504 are empty.
    adrp x1, boot_level0
    adrp x2, boot_level1
    mov x3, #0
1:  add x4, x2, x3, lsl #12
    add x4, x4, #TABLE
    cmp x3, #8
    csel x4, x4, xzr, lo
    str x4, [x1, x3, lsl #3]
    add x3, x3, #1
    cmp x3, #512
    b.lo 1b

    // Level 1: 4096 blocks of 1 GiB, device memory that is never executed.
    mov x5, #1
    lsl x5, x5, #XN_SHIFT               // execute never
    mov x4, #DEVICE_BLOCK
    orr x4, x4, x5
    mov x3, #0
2:  orr x6, x4, x3, lsl #30
    str x6, [x2, x3, lsl #3]
    add x3, x3, #1
    cmp x3, #4096
    b.lo 2b

    // Level 2, for the image's GiB: 512 blocks of 2 MiB, memory that is never executed.
    adrp x7, __image_start
    lsr x8, x7, #30
    adrp x9, boot_level2
    add x6, x9, #TABLE
    str x6, [x2, x8, lsl #3]
    lsl x8, x8, #30
    mov x4, #MEMORY_BLOCK
    orr x4, x4, x5
    orr x4, x4, x8
    mov x3, #0
3:  orr x6, x4, x3, lsl #21
    str x6, [x9, x3, lsl #3]
    add x3, x3, #1
    cmp x3, #512
    b.lo 3b

    // Level 3, for the image's first 2 MiB: each page as what is in it.
    adrp x10, boot_level3
    add x6, x10, #TABLE
    ubfx x8, x7, #21, #9
    str x6, [x9, x8, lsl #3]
    adrp x11, __text_end
    adrp x12, __rodata_end
    mov x13, #MEMORY_PAGE
    mov x3, #0
4:  orr x6, x7, x13
    cmp x7, x12
    b.hs 5f
    orr x6, x6, #READ_ONLY
    cmp x7, x11
    b.lo 6f
5:  orr x6, x6, x5                      // constants and data: execute never
6:  str x6, [x10, x3, lsl #3]
    add x7, x7, #4096
    add x3, x3, #1
    cmp x3, #512
    b.lo 4b
    adrp x1, boot_stack_guard
    ubfx x1, x1, #12, #9
    str xzr, [x10, x1, lsl #3]
    adrp x1, boot_trap_stack_guard
    ubfx x1, x1, #12, #9
    str xzr, [x10, x1, lsl #3]

    // And what they read of them meanwhile, unasked, is older too.
    bl drop_tables
    bl cpu_setup

    adrp x1, __bss_start
    adrp x2, __bss_end
8:  cmp x1, x2
    b.hs 9f
    stp xzr, xzr, [x1], #16
    b 8b

    // Traps take the stack of EL2, everything else that of EL0: a trap because of a stack has one of its own.
9:  msr spsel, #0
    adrp x1, boot_stack_top
    mov sp, x1
    mov x29, xzr
    mov x30, xzr
    mov x0, x20
    bl hv_main
    b .

// Where firmware starts the other CPUs, at EL2 with the MMU off; x0 leads to a `Start` of smp.rs, whose first two words
// are the tops of its stacks.
.globl secondary_entry
secondary_entry:
    msr daifset, #0xf
    msr spsel, #1
    mov x20, x0
    bl cpu_setup
    ldp x1, x2, [x20]
    mov sp, x1
    msr spsel, #0
    mov sp, x2
    mov x29, xzr
    mov x30, xzr
    mov x0, x20
    bl hv_secondary
    b .

// Has the data caches forget the tables, dirty lines too. Stores before it are in memory when it ends.
drop_tables:
    mrs x3, ctr_el0
    ubfx x3, x3, #16, #4                // log2 of the words of the smallest data cache line
    mov x4, #4
    lsl x4, x4, x3
    adrp x1, boot_tables
    adrp x2, boot_tables_end
    dsb sy
7:  dc ivac, x1
    add x1, x1, x4
    cmp x1, x2
    b.lo 7b
    dsb sy
    ret

// Turns MMU and caches on and sets what the CPU starts with undefined.
cpu_setup:
    adrp x0, trap_vectors
    add x0, x0, :lo12:trap_vectors
    msr vbar_el2, x0
    mov x0, #0x38                       // HCR_EL2: AMO, IMO, FMO, what arrives is for EL2
    mov x1, #1
    orr x0, x0, x1, lsl #31             // RW: EL1 is AArch64
    msr hcr_el2, x0
    isb
    // E2H is 0 now, or the CPU has it fixed at 1 (Arm ARM, D19.2 HCR_EL2): CPTR_EL2, TCR_EL2 and CNTHCTL_EL2 have other
    // fields then.
    mrs x0, hcr_el2
    tbnz x0, #34, wrong_host
    mov x0, #0x33ff                     // CPTR_EL2: floating point does not trap
    msr cptr_el2, x0
    msr cntvoff_el2, xzr
    mrs x0, id_aa64pfr0_el1
    ubfx x0, x0, #24, #4                // GIC: 0 where the interrupt controller has no system registers
    cbz x0, 11f
    mov x0, #0xf
    msr S3_4_C12_C9_5, x0               // ICC_SRE_EL2: the interrupt controller by system registers
    isb
11:
    ldr x0, =0xff04                     // MAIR_EL2: 0 = device nGnRE, 1 = write-back memory
    msr mair_el2, x0
    ldr x0, =0x80803510                 // TCR_EL2: reserved ones, 4 KiB, inner shareable, write-back, 48 bits
    mrs x1, id_aa64mmfr0_el1
    and x1, x1, #0xf                    // PARange
    mov x2, #5                          // 48 bits, what tables of 4 KiB pages can say
    cmp x1, x2
    csel x1, x1, x2, lo
    orr x0, x0, x1, lsl #16
    msr tcr_el2, x0
    adrp x0, boot_level0
    msr ttbr0_el2, x0
    isb
    tlbi alle2
    dsb sy
    ic iallu
    dsb sy
    isb
    ldr x0, =0x30cd183d                 // SCTLR_EL2: reserved ones, WXN, I, SA, C, M
    msr sctlr_el2, x0
    isb
    ret

// Why no hypervisor runs here. Said by semihosting, as nothing else is known yet.
wrong_level:
    adr x1, wrong_level_text
    b refuse
wrong_place:
    adr x1, wrong_place_text
    b refuse
wrong_host:
    adr x1, wrong_host_text
refuse:
    mov w0, #0x04                       // SYS_WRITE0
    hlt #0xf000
    mov w0, #0x20                       // SYS_EXIT_EXTENDED
    adr x1, refuse_exit
    hlt #0xf000
10: wfe
    b 10b
.balign 8
refuse_exit:
    .quad 0x20026, 37                   // ADP_Stopped_ApplicationExit, Outcome::Refused
wrong_level_text:
    .asciz "[error] not entered at EL2: start QEMU with -machine virt,virtualization=on\n"
wrong_place_text:
    .asciz "[error] not where it was linked to run: load it at 0x40200000, as QEMU's -kernel does on -machine virt\n"
wrong_host_text:
    .asciz "[error] HCR_EL2.E2H stays 1 on this CPU: expected one that can have it 0, as QEMU's -cpu max\n"

.section .bss.boot, "aw", @nobits
.balign 4096
.globl boot_tables, boot_tables_end, boot_level0, boot_stack_guard, boot_trap_stack_guard
boot_tables:
boot_level0:            .skip 4096
boot_level1:            .skip 32768
boot_level2:            .skip 4096
boot_level3:            .skip 4096
boot_tables_end:
boot_trap_stack_guard:  .skip 4096
boot_trap_stack:        .skip 16384
boot_trap_stack_top:
boot_stack_guard:       .skip 4096
boot_stack:             .skip 262144
boot_stack_top:
.text
