; A guest to be looked at with gdb: PVH ELF with symbols, long mode, two processors that work in loops.
;
; Mapped: the first GiB at 0 (2 MiB pages) and at its alias 0xffffffff80000000; `secret` at SECRET_AT (one 4 KiB page).
; With leave != 0 it powers the machine off.
%define SECRET_AT 0x7f0000000000
%define LAPIC     0xfee00000
%define TRAMPOLINE 0x8000
%define SEL_CODE64 8
%define SEL_DATA   16
%define SEL_CODE32 24

section .note.pvh note alloc noexec nowrite align=4
	dd	4, 4, 18		; XEN_ELFNOTE_PHYS32_ENTRY
	db	"Xen", 0
	dd	entry

section .text exec write align=16
bits 32
global entry
entry:
	mov	esp, stack_top
	lgdt	[gdtr]
	; Tables: what is not constant after linking.
	mov	dword [pml4], pdpt_low + 3
	mov	dword [pml4 + 511 * 8], pdpt_alias + 3
	mov	dword [pml4 + 254 * 8], pdpt_secret + 3
	mov	dword [pdpt_low], pd + 3
	mov	dword [pdpt_low + 3 * 8], 0xc0000000 | 0x83	; the local APIC, a 1 GiB page
	mov	dword [pdpt_alias + 510 * 8], pd + 3
	mov	dword [pdpt_secret], pd_secret + 3
	mov	dword [pd_secret], pt_secret + 3
	mov	dword [pt_secret], secret + 3
	xor	ecx, ecx
.pd:
	mov	eax, ecx
	shl	eax, 21
	or	eax, 0x83
	mov	[pd + ecx * 8], eax
	inc	ecx
	cmp	ecx, 512
	jb	.pd
	call	to_long_mode
	jmp	SEL_CODE64:start64

to_long_mode:
	mov	eax, cr4
	or	eax, 0x620		; PAE, OSFXSR, OSXMMEXCPT
	mov	cr4, eax
	mov	eax, pml4
	mov	cr3, eax
	mov	ecx, 0xc0000080
	rdmsr
	or	eax, 0x100
	wrmsr
	mov	eax, cr0
	and	eax, ~4
	or	eax, 0x80000001
	mov	cr0, eax
	ret

; Copied to TRAMPOLINE.
bits 16
trampoline:
	cli
	xor	ax, ax
	mov	ds, ax
	o32 lgdt [cs:trampoline_gdtr - trampoline]
	mov	eax, cr0
	or	al, 1
	mov	cr0, eax
	jmp	dword SEL_CODE32:second32
trampoline_gdtr:
	dw	gdt_end - gdt - 1
	dd	gdt
trampoline_end:

bits 32
second32:
	mov	ax, SEL_DATA
	mov	ds, ax
	mov	ss, ax
	mov	esp, second_stack_top
	call	to_long_mode
	jmp	SEL_CODE64:second64

bits 64
default rel
global start64
start64:
	mov	ax, SEL_DATA
	mov	ds, ax
	mov	es, ax
	mov	ss, ax
	mov	rsp, stack_top
	movdqa	xmm0, [pattern]
	fld1
	mov	r15, 0x1122334455667788
	; The second processor.
	mov	esi, trampoline
	mov	edi, TRAMPOLINE
	mov	ecx, trampoline_end - trampoline
	rep	movsb
	mov	ebx, LAPIC
	mov	dword [rbx + 0xf0], 0x1ff
	mov	dword [rbx + 0x300], 0xc4500	; INIT, all but self
	mov	ecx, 10000
.wait:
	pause
	loop	.wait
	mov	dword [rbx + 0x300], 0xc4600 | TRAMPOLINE >> 12
global high
high:
	mov	edi, [counter]
	call	work
	cmp	dword [leave_flag], 0
	je	high
	mov	dx, 0x604
	mov	ax, 0x2000
	out	dx, ax
	hlt

global work, work_add, work_read, work_end
work:
	inc	qword [counter]
work_add:
	lea	rax, [rdi + 1]
	mov	[watched], rax
global watched_written
watched_written:
	nop
work_read:
	mov	rcx, [read_only]
global read_done
read_done:
	pause
work_end:
	ret

global second64, second_loop
second64:
	mov	ax, SEL_DATA
	mov	ds, ax
	mov	es, ax
	mov	ss, ax
second_loop:
	inc	qword [second_counter]
global second_work
second_work:
	pause
	jmp	second_loop

section .data write align=4096	; not in a page with code, which would slow both down
gdt:	dq	0, 0x00209b0000000000, 0x00cf93000000ffff, 0x00cf9b000000ffff
gdt_end:
gdtr:	dw	gdt_end - gdt - 1
	dd	gdt
align 16
pattern:
	dq	0x0706050403020100, 0x0f0e0d0c0b0a0908
global leave_flag, counter, watched, read_only, second_counter, secret
leave_flag:
	dq	0
counter:
	dq	0
watched:
	dq	0
read_only:
	dq	0x5151
second_counter:
	dq	0
align 4096
secret:	dq	0xfeedfacecafebeef
	times	511 dq 0
global pml4
pml4:	times	512 dq 0
pdpt_low:
	times	512 dq 0
pdpt_alias:
	times	512 dq 0
pdpt_secret:
	times	512 dq 0
pd:	times	512 dq 0
pd_secret:
	times	512 dq 0
pt_secret:
	times	512 dq 0
	times	512 dq 0
stack_top:
	times	512 dq 0
second_stack_top:
