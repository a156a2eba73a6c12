// Start of the other CPUs (AT&T syntax): from the real mode of a start-up message straight to 64-bit Rust.
//
// smp.rs copies the code from ap_trampoline to ap_trampoline_end to physical 0x8000, fills the mailbox at its end, and
// sends one CPU there at a time. All addresses are those of the copy.

.section .rodata.trampoline, "a"
.balign 16
.globl ap_trampoline, ap_mailbox, ap_trampoline_end

.set HERE, 0x8000

.code16
ap_trampoline:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    // CR4: PAE, OSFXSR, OSXMMEXCPT, as in entry.s.
    movl $0x620, %eax
    movl %eax, %cr4
    movl ap_mailbox - ap_trampoline + HERE, %eax
    movl %eax, %cr3
    // EFER.LME.
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    // CR0: clear CD, NW (set by INIT) and EM; set PG, NE, MP, PE. Paging and protection together enter long mode.
    movl %cr0, %eax
    andl $0x9ffffffb, %eax
    orl $0x80000023, %eax
    lgdtl ap_gdt_pointer - ap_trampoline + HERE
    movl %eax, %cr0
    ljmpl $0x08, $(ap_start64 - ap_trampoline + HERE)

.code64
ap_start64:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    xorl %ebp, %ebp
    movq ap_mailbox - ap_trampoline + HERE + 8, %rsp
    movq ap_mailbox - ap_trampoline + HERE + 16, %rax
    movq ap_mailbox - ap_trampoline + HERE + 24, %rdi
    call *%rax
1:  cli
    hlt
    jmp 1b

.balign 8
ap_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    // 0x08: 64-bit code
    .quad 0x00cf93000000ffff    // 0x10: data
ap_gdt_pointer:
    .word ap_gdt_pointer - ap_gdt - 1
    .long ap_gdt - ap_trampoline + HERE
.balign 8
ap_mailbox:                     // page-table root, stack top, entry, argument
    .quad 0, 0, 0, 0
ap_trampoline_end:
.text
