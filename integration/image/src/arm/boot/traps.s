// The sixteen exception vectors and the path they share to hv_trap.
//
// Entered on the trap stack (SP_EL2). Only general registers are kept: Rust code that is interrupted and goes on is the
// self-check's alone, which gives the others up.

.text
.balign 2048
.globl trap_vectors
trap_vectors:
.set vector, 0
.rept 16
    .balign 128
    sub sp, sp, #304
    stp x0, x1, [sp]
    mov x0, #vector
    b trap_common
    .set vector, vector + 1
.endr

.balign 128
trap_common:
    stp x2, x3, [sp, #16]
    stp x4, x5, [sp, #32]
    stp x6, x7, [sp, #48]
    stp x8, x9, [sp, #64]
    stp x10, x11, [sp, #80]
    stp x12, x13, [sp, #96]
    stp x14, x15, [sp, #112]
    stp x16, x17, [sp, #128]
    stp x18, x19, [sp, #144]
    stp x20, x21, [sp, #160]
    stp x22, x23, [sp, #176]
    stp x24, x25, [sp, #192]
    stp x26, x27, [sp, #208]
    stp x28, x29, [sp, #224]
    mrs x1, elr_el2
    stp x30, x1, [sp, #240]
    mrs x1, spsr_el2
    mrs x2, esr_el2
    stp x1, x2, [sp, #256]
    mrs x1, far_el2
    mrs x2, sp_el0
    stp x1, x2, [sp, #272]
    str x0, [sp, #288]
    mov x0, sp
    bl hv_trap
    ldp x1, x2, [sp, #248]
    msr elr_el2, x1
    msr spsr_el2, x2
    ldp x2, x3, [sp, #16]
    ldp x4, x5, [sp, #32]
    ldp x6, x7, [sp, #48]
    ldp x8, x9, [sp, #64]
    ldp x10, x11, [sp, #80]
    ldp x12, x13, [sp, #96]
    ldp x14, x15, [sp, #112]
    ldp x16, x17, [sp, #128]
    ldp x18, x19, [sp, #144]
    ldp x20, x21, [sp, #160]
    ldp x22, x23, [sp, #176]
    ldp x24, x25, [sp, #192]
    ldp x26, x27, [sp, #208]
    ldp x28, x29, [sp, #224]
    ldr x30, [sp, #240]
    ldp x0, x1, [sp]
    add sp, sp, #304
    eret
