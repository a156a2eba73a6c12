// Entry of the image (AT&T syntax): from the PVH 32-bit state to 64-bit Rust.
//
// On entry (Xen PVH boot ABI): flat 32-bit protected mode, paging off, interrupts off, %ebx = physical address of
// hvm_start_info. The tables built here map the first 4 TiB onto themselves: 4 GiB in 2 MiB pages (so that single pages
// can be taken out later), the rest in 1 GiB pages where the CPU has them. Firmware may place 64-bit BARs that high.

.section .text.boot, "ax"
.code32
.globl pvh_entry
pvh_entry:
    cli
    cld
    movl $boot_stack_top, %esp
    movl %ebx, %ebp

    // PML4[0..8] point to eight page-directory-pointer tables, which lie in a row.
    movl $boot_pdpts + 3, %eax
    movl $boot_pml4, %edi
    movl $8, %ecx
1:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    decl %ecx
    jnz 1b

    // Entries 0..4 of the first one point to four page directories.
    movl $boot_page_directories + 3, %eax
    movl $boot_pdpts, %edi
    movl $4, %ecx
1:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    decl %ecx
    jnz 1b

    // Four directories hold 2048 pages of 2 MiB: present, writable, page-size bit.
    movl $boot_page_directories, %edi
    movl $0x83, %eax
    movl $2048, %ecx
2:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    decl %ecx
    jnz 2b

    // The other 4092 entries are 1 GiB pages, if CPUID 80000001h EDX bit 26 says that they exist.
    movl $0x80000001, %eax
    cpuid
    testl $(1 << 26), %edx
    jz 4f
    movl $boot_pdpts + 32, %edi
    movl $0x83, %eax
    movl $1, %edx
    movl $4092, %ecx
3:  movl %eax, (%edi)
    movl %edx, 4(%edi)
    addl $0x40000000, %eax
    adcl $0, %edx
    addl $8, %edi
    decl %ecx
    jnz 3b

4:  // CR4: PAE, OSFXSR, OSXMMEXCPT. The image is soft-float; the last two only keep stray SSE code from trapping.
    movl %cr4, %eax
    orl $0x620, %eax
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    // EFER.LME.
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    // CR0: clear EM; set PG, NE, MP, PE.
    movl %cr0, %eax
    andl $0xfffffffb, %eax
    orl $0x80000023, %eax
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    ljmp $0x08, $start64

.code64
start64:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    // The upper half of %rsp is undefined after the switch of mode.
    movl %esp, %esp
    movl %ebp, %edi
    xorl %ebp, %ebp
    call hv_main
5:  hlt
    jmp 5b

.section .rodata.boot, "a"
.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    // 0x08: 64-bit code
    .quad 0x00cf93000000ffff    // 0x10: data
boot_gdt_end:
boot_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .quad boot_gdt

.section .bss.boot, "aw", @nobits
.balign 4096
.globl boot_pml4, boot_stack_guard
boot_pml4:             .skip 4096
boot_pdpts:            .skip 32768
boot_page_directories: .skip 16384
boot_stack_guard:      .skip 4096
boot_stack:            .skip 262144
boot_stack_top:
.text
