// Entry stubs of all 256 vectors (AT&T syntax), 16 bytes apart, and the path they share to hv_trap.
//
// Vectors for which the CPU pushes no error code push a zero, so that one frame layout serves all.

.text
.balign 16
.globl trap_stubs
trap_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    pushq $0
    .endif
    pushq $vector
    jmp trap_common
    .set vector, vector + 1
.endr

.balign 16
trap_common:
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq %rsp, %rdi
    // The CPU aligned the stack to 16 before it pushed 5 words; with 17 more it is 16-aligned again.
    call hv_trap
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rbp
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rbx
    popq %rax
    addq $16, %rsp
    iretq

.section .bss.traps, "aw", @nobits
.balign 4096
.globl boot_trap_stack_guard, boot_trap_stack_top
boot_trap_stack_guard: .skip 4096
boot_trap_stacks:      .skip 49152
boot_trap_stack_top:
.text
