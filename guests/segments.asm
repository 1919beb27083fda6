; 32- and 16-bit protected mode: loading segment registers, limits, types, privilege, far transfers; exact error codes
; (SDM 3A chapter 5, 6.15). TCG checks loads, but neither limits nor types of accesses.
%define GUEST "segments"
%define GUEST_BITS 32
%include "guest.inc"

%define S(n) (SEL_FREE + (n) * 8)

; LOAD register, selector
%define LOAD LOAD_ __?LINE?__,
%macro LOAD_ 3
	mov	eax, %3
	WORKS_	%1, mov %2, ax
%endmacro
; LOAD_FAULT register, selector, vector: with the selector as the error code
%define LOAD_FAULT LOAD_FAULT_ __?LINE?__,
%macro LOAD_FAULT_ 4
	mov	eax, %3
	FAULT_	%1, %4, (%3) & 0xfffc, mov %2, ax
%endmacro

guest_main:
	call	loads
	call	limits
	call	types
	call	queries
	call	tables
	call	far_transfers
	call	sixteen_bit
	call	user_level
	ret

loads:
	LOAD	es, 0
	LOAD	es, 3			; null with any RPL
%ifndef ON_TCG
	FAULT	EXC_GP, 0, mov eax, [es:0]
	FAULT	EXC_GP, 0, mov [es:0x1000], eax
%endif
	LOAD_FAULT ss, 0, EXC_GP
	LOAD_FAULT ss, 3, EXC_GP
	LOAD_FAULT es, 0x1000, EXC_GP		; beyond the GDT
	LOAD_FAULT es, GDT_ENTRIES * 8 + 2, EXC_GP
	LOAD_FAULT es, 0x14, EXC_GP		; LDT: there is none
	LOAD_FAULT ss, 0x17, EXC_GP
	mov	eax, SEL_CODE
	FAULT	EXC_UD, 0, {db 0x8e, 0xc8}	; MOV CS
	FAULT	EXC_UD, 0, {db 0x8e, 0xf0}	; segment register 6
	; A descriptor that ends beyond the limit.
	mov	dword [small_gdtr + 2], gdt
	mov	word [small_gdtr], S(1) + 6
	SET_DESCRIPTOR S(1), 0, 0xfffff, 0xc093
	lgdt	[small_gdtr]
	LOAD_FAULT es, S(1), EXC_GP
	inc	word [small_gdtr]
	lgdt	[small_gdtr]
	LOAD	es, S(1)
	lgdt	[gdtr]
	; Not present.
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc013
	LOAD_FAULT es, S(0), EXC_NP
	LOAD_FAULT fs, S(0) | 3, EXC_GP		; privilege comes first
	LOAD_FAULT ss, S(0), EXC_SS
	; Types.
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc089
	LOAD_FAULT es, S(0), EXC_GP
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc099 ; execute-only
	LOAD_FAULT es, S(0), EXC_GP
	LOAD_FAULT ss, S(0), EXC_GP
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc09b
	LOAD	es, S(0)
	LOAD_FAULT ss, S(0), EXC_GP
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc091 ; read-only
	LOAD	gs, S(0)
	LOAD_FAULT ss, S(0), EXC_GP
	; Privilege.
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc093
	LOAD_FAULT es, S(0) | 3, EXC_GP
	LOAD_FAULT es, S(0) | 1, EXC_GP
	LOAD_FAULT ss, S(0) | 3, EXC_GP
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc0b3 ; DPL 1
	LOAD	es, S(0)
	LOAD	es, S(0) | 1
	LOAD_FAULT es, S(0) | 2, EXC_GP
	LOAD_FAULT ss, S(0), EXC_GP
	LOAD_FAULT ss, S(0) | 1, EXC_GP
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc09f ; conforming: no privilege check
	LOAD	es, S(0) | 3
	; The accessed bit.
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc092
	LOAD	fs, S(0)
	CHECK8	[gdt + S(0) + 5], 0x93
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc012
	LOAD_FAULT fs, S(0), EXC_NP
	CHECK8	[gdt + S(0) + 5], 0x12		; not touched by a load that failed
	; What was loaded stays, whatever becomes of the descriptor.
	SET_DESCRIPTOR S(0), FREE_MEMORY, 0xfffff, 0xc093
	mov	dword [FREE_MEMORY + 0x40], 0x600df00d
	LOAD	es, S(0)
	SET_DESCRIPTOR S(0), 0, 0, 0
	CHECK	[es:0x40], 0x600df00d
	; The selector reads back whole; the upper half of a 32-bit register is zero.
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc0f3
	LOAD	gs, S(0) | 2
	mov	ebx, -1
	mov	ebx, gs
	CHECK	ebx, S(0) | 2
	mov	ebx, -1
	mov	bx, gs
	CHECK	ebx, 0xffff0000 | S(0) | 2
	; LES and its kin: nothing is changed by a fault.
	mov	dword [pointer], 0x12345678
	mov	word [pointer + 4], S(0)
	mov	ebx, 1
	WORKS	les ebx, [pointer]
	CHECK	ebx, 0x12345678
	mov	word [pointer + 4], 0x1000
	mov	ebx, 1
	FAULT	EXC_GP, 0x1000, lfs ebx, [pointer]
	CHECK	ebx, 1
	mov	word [pointer + 4], 0
	WORKS	lgs ebx, [pointer]
	FAULT	EXC_GP, 0, lss ebx, [pointer]
	FAULT	EXC_UD, 0, {db 0xc4, 0xc0}	; LES with a register (VEX of nothing known outside 64-bit mode)
	; POP: a fault leaves ESP.
	push	dword 0x1000
	mov	ebx, esp
	FAULT	EXC_GP, 0x1000, pop es
	CHECK	esp, ebx
	pop	eax
	; 32-bit PUSH and POP move ESP by 4.
	push	fs
	CHECK	esp, ebx
	pop	fs
	o16 push fs
	lea	eax, [ebx + 2]
	CHECK	esp, eax
	o16 pop fs
	ret

limits:
%ifndef ON_TCG
	SET_DESCRIPTOR S(0), FREE_MEMORY, 0xfff, 0x4093 ; bytes
	LOAD	es, S(0)
	WORKS	mov al, [es:0xfff]
	WORKS	mov ax, [es:0xffe]
	WORKS	mov eax, [es:0xffc]
	FAULT	EXC_GP, 0, mov al, [es:0x1000]
	FAULT	EXC_GP, 0, mov ax, [es:0xfff]
	FAULT	EXC_GP, 0, mov eax, [es:0xffd]
	FAULT	EXC_GP, 0, mov eax, [es:0xffffffff]
	FAULT	EXC_GP, 0, mov eax, [es:0xfffffffd]
	FAULT	EXC_GP, 0, mov [es:0xffd], eax
	FAULT	EXC_GP, 0, add [es:0x1000], eax
	FAULT	EXC_GP, 0, movq xmm0, [es:0xff9]
	WORKS	movups xmm0, [es:0xff0]
	FAULT	EXC_GP, 0, movups xmm0, [es:0xff1]
	FAULT	EXC_GP, 0, fld tword [es:0xff7]
	; A string instruction stops in the middle.
	mov	edi, 0xffc
	mov	ecx, 8
	xor	eax, eax
	FAULT	EXC_GP, 0, rep stosb
	CHECK	edi, 0x1000
	CHECK	ecx, 4
	; Limit 0: one byte. Pages: the low 12 bits of the limit are ones.
	SET_DESCRIPTOR S(0), FREE_MEMORY, 0, 0x4093
	LOAD	es, S(0)
	WORKS	mov al, [es:0]
	FAULT	EXC_GP, 0, mov al, [es:1]
	SET_DESCRIPTOR S(0), FREE_MEMORY, 0, 0xc093
	LOAD	es, S(0)
	WORKS	mov al, [es:0xfff]
	FAULT	EXC_GP, 0, mov al, [es:0x1000]
	; Expand-down: everything above the limit.
	SET_DESCRIPTOR S(0), FREE_MEMORY, 0xfff, 0x4097
	LOAD	es, S(0)
	FAULT	EXC_GP, 0, mov al, [es:0xfff]
	FAULT	EXC_GP, 0, mov eax, [es:0xffe]
	WORKS	mov al, [es:0x1000]
	WORKS	mov eax, [es:0x10000]
	FAULT	EXC_GP, 0, mov eax, [es:0xfffffffd]
	SET_DESCRIPTOR S(0), FREE_MEMORY, 0xfff, 0x0097 ; B = 0: up to 64 KiB
	LOAD	es, S(0)
	WORKS	mov eax, [es:0xfffc]
	FAULT	EXC_GP, 0, mov eax, [es:0xfffd]
	FAULT	EXC_GP, 0, mov al, [es:0x10000]
	SET_DESCRIPTOR S(0), FREE_MEMORY, 0xffff, 0x0097 ; empty
	LOAD	es, S(0)
	FAULT	EXC_GP, 0, mov al, [es:0xffff]
	FAULT	EXC_GP, 0, mov al, [es:0]
	; 4 GiB with a base: linear addresses wrap.
	SET_DESCRIPTOR S(0), FREE_MEMORY, 0xfffff, 0xc093
	LOAD	es, S(0)
	mov	dword [FREE_MEMORY - 0x100], 0x77
	CHECK	[es:0xffffff00], 0x77
	; A CS limit: the fetch faults.
	SET_DESCRIPTOR S(1), 0, 0x10, 0x409b
	SET_BASE S(1), .last - 0x10
	jmp	.past
.last:	nop				; the last byte in the segment
.behind:
	nop
.past:
	CATCH	.caught
	jmp	S(1):0x10
.caught:
	CAUGHT	EXC_GP, 0, 0x11
	CHECK	[caught_cs], S(1)
	FAULT	EXC_GP, 0, jmp S(1):0x11
	; An instruction that straddles the limit.
	mov	word [.last], 0x9066	; a NOP of two bytes
	CATCH	.straddled
	jmp	S(1):0x10
.straddled:
	CAUGHT	EXC_GP, 0, 0x10
	LOAD	es, SEL_DATA
%endif
	ret

types:
%ifndef ON_TCG
	SET_DESCRIPTOR S(0), FREE_MEMORY, 0xfffff, 0xc091
	LOAD	es, S(0)
	WORKS	mov eax, [es:0]
	FAULT	EXC_GP, 0, mov [es:0], eax
	FAULT	EXC_GP, 0, lock add [es:0], eax
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc09b
	LOAD	es, S(0)
	WORKS	mov eax, [es:boot_magic]
	FAULT	EXC_GP, 0, mov [es:boot_magic], eax
	FAULT	EXC_GP, 0, mov [cs:boot_magic], eax
	WORKS	mov eax, [cs:boot_magic]
	; Execute-only code cannot be read through CS.
	SET_DESCRIPTOR S(1), 0, 0xfffff, 0xc099
	CATCH	.caught
	jmp	S(1):.execute_only
.execute_only:
	nop
.at:	mov	eax, [cs:boot_magic]
.caught:
	CAUGHT	EXC_GP, 0, .at
%endif
	ret

queries:
	; LAR, LSL, VERR, VERW: ZF says whether; nothing faults.
	SET_DESCRIPTOR S(0), 0x12345678, 0xabcde, 0xd0f3
	mov	ebx, S(0)
	lar	eax, ebx
	HOLDS	z, "lar data"
	CHECK_BITS eax, 0xfff0ff00, 0x00d0f300 ; bits 19:16 are undefined
	lsl	eax, ebx
	HOLDS	z, "lsl data"
	CHECK	eax, 0xabcdefff
	lar	ax, bx
	CHECK_BITS eax, 0xffff, 0xf300
	verr	bx
	HOLDS	z, "verr data"
	verw	bx
	HOLDS	z, "verw data"
	SET_DESCRIPTOR S(0), 0, 0x12345, 0x40f1
	lsl	eax, ebx
	CHECK	eax, 0x12345
	verw	bx
	HOLDS	nz, "verw read-only"
	verr	bx
	HOLDS	z, "verr read-only"
	SET_DESCRIPTOR S(0), 0, 0x12345, 0x40f9
	verr	bx
	HOLDS	nz, "verr execute-only"
	SET_DESCRIPTOR S(0), 0, 0x12345, 0x40fb
	verr	bx
	HOLDS	z, "verr readable code"
	verw	bx
	HOLDS	nz, "verw code"
	; RPL above DPL; conforming code does not care.
	SET_DESCRIPTOR S(0), 0, 0x12345, 0x4093
	mov	ebx, S(0) | 1
	mov	eax, 0x5555
	lar	eax, ebx
	HOLDS	nz, "lar privilege"
	CHECK	eax, 0x5555
	lsl	eax, ebx
	HOLDS	nz, "lsl privilege"
	verr	bx
	HOLDS	nz, "verr privilege"
	SET_DESCRIPTOR S(0), 0, 0x12345, 0x409f
	lar	eax, ebx
	HOLDS	z, "lar conforming"
	verr	bx
	HOLDS	z, "verr conforming"
	; Null, outside, and system types: LAR knows gates, LSL does not.
	xor	ebx, ebx
	lar	eax, ebx
	HOLDS	nz, "lar null"
	verr	bx
	HOLDS	nz, "verr null"
	mov	ebx, 0xfff8
	lsl	eax, ebx
	HOLDS	nz, "lsl outside"
	mov	ebx, S(0)
	SET_DESCRIPTOR S(0), 0, 0x67, 0x008c	; call gate
	lar	eax, ebx
	HOLDS	z, "lar call gate"
	lsl	eax, ebx
	HOLDS	nz, "lsl call gate"
	SET_DESCRIPTOR S(0), 0, 0x67, 0x008e	; interrupt gate
	lar	eax, ebx
	HOLDS	nz, "lar interrupt gate"
	SET_DESCRIPTOR S(0), 0, 0x67, 0x0089
	lar	eax, ebx
	HOLDS	z, "lar TSS"
	lsl	eax, ebx
	HOLDS	z, "lsl TSS"
	CHECK	eax, 0x67
	verr	bx
	HOLDS	nz, "verr system"
	SET_DESCRIPTOR S(0), 0, 0x67, 0x0013	; not present counts as valid for LAR
	lar	eax, ebx
	HOLDS	z, "lar not present"
	CHECK_BITS eax, 0xff00, 0x1300
	; ARPL
	mov	eax, 0x60
	mov	ebx, 3
	arpl	ax, bx
	HOLDS	z, "arpl raises"
	CHECK	eax, 0x63
	mov	ebx, 1
	arpl	ax, bx
	HOLDS	nz, "arpl keeps"
	CHECK	eax, 0x63
	LOAD	es, SEL_DATA
	ret

tables:
	sub	esp, 8
	sgdt	[esp]
	CHECK16	[esp], GDT_ENTRIES * 8 - 1
	CHECK	[esp + 2], gdt
	sidt	[esp]
	CHECK16	[esp], 256 * 8 - 1
	CHECK	[esp + 2], idt
	add	esp, 8
	str	eax
	CHECK	eax, SEL_TSS
	CHECK8	[gdt + SEL_TSS + 5], 0x8b	; busy
	mov	eax, SEL_TSS
	FAULT	EXC_GP, SEL_TSS, ltr ax
%ifndef ON_TCG
	xor	eax, eax
	FAULT	EXC_GP, 0, ltr ax
%endif
	mov	eax, 0x1000
	FAULT	EXC_GP, 0x1000, ltr ax
	mov	eax, 0x14
	FAULT	EXC_GP, 0x14, ltr ax
	FAULT	EXC_GP, 0x14, lldt ax
	SET_DESCRIPTOR S(0), 0, 0x67, 0x0009
	mov	eax, S(0)
	FAULT	EXC_NP, S(0), ltr ax
	FAULT	EXC_GP, S(0), lldt ax
	SET_DESCRIPTOR S(0), FREE_MEMORY, 0x1f, 0x0002
	FAULT	EXC_NP, S(0), lldt ax
	SET_DESCRIPTOR S(0), FREE_MEMORY, 0x1f, 0x0082
	FAULT	EXC_GP, S(0), ltr ax
	WORKS	lldt ax
	sldt	ebx
	CHECK	ebx, S(0)
	mov	dword [FREE_MEMORY + 8], 0x0000ffff	; flat data
	mov	dword [FREE_MEMORY + 12], 0x00cf9200
	mov	dword [FREE_MEMORY], 0x0000ffff
	mov	dword [FREE_MEMORY + 4], 0x00cf9200
	LOAD	es, 0x0c
	CHECK	[es:boot_magic], 0x2badb002
	CHECK8	[FREE_MEMORY + 13], 0x93
	LOAD	es, 0x04			; entry 0 of the LDT is not null
	CHECK	[es:boot_magic], 0x2badb002
	LOAD_FAULT es, 0x24, EXC_GP
	xor	eax, eax
	WORKS	lldt ax
	LOAD_FAULT es, 0x0c, EXC_GP
	ret

far_transfers:
	FAULT	EXC_GP, 0, jmp 0:.here
	FAULT	EXC_GP, 0, jmp 3:.here
	FAULT	EXC_GP, 0, call 0:.here
	FAULT	EXC_GP, 0x1000, jmp 0x1003:.here
	FAULT	EXC_GP, SEL_DATA, jmp SEL_DATA:.here
	FAULT	EXC_GP, SEL_USER_CODE32 & ~3, jmp SEL_USER_CODE32:.here ; DPL 3 is not CPL
	FAULT	EXC_GP, SEL_USER_CODE32 & ~3, call SEL_USER_CODE32 & ~3:.here
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc01b
	FAULT	EXC_NP, S(0), jmp S(0):.here
	SET_DESCRIPTOR S(0), 0, 0xfff, 0x409b	; target outside the limit
%ifndef ON_TCG				; (it gives the selector as error code)
	FAULT	EXC_GP, 0, jmp S(0):.here
	mov	ebx, esp
	FAULT	EXC_GP, 0, call S(0):.here
	CHECK	esp, ebx
%endif
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc0ff	; conforming DPL 3
	FAULT	EXC_GP, S(0), jmp S(0):.here
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc09a
	FAULT	EXC_GP, S(0), jmp S(0) | 1:.here
	CHECK8	[gdt + S(0) + 5], 0x9a
	jmp	S(0):.here
.here:
%ifndef ON_TCG
	CHECK8	[gdt + S(0) + 5], 0x9b
%endif
	mov	eax, cs
	CHECK	eax, S(0)
	mov	ebx, esp
	call	SEL_CODE:.called
.back:
	CHECK	esp, ebx
	mov	eax, cs
	CHECK	eax, S(0)
	; Conforming: CPL stays, also in the RPL of CS.
	SET_DESCRIPTOR S(1), 0, 0xfffff, 0xc09f
	jmp	S(1) | 3:.conforming
.conforming:
	mov	eax, cs
	CHECK	eax, S(1)
	jmp	SEL_CODE:.flat
.flat:
	; Far RET: to an inner level, null, wrong type, not present.
	push	dword 0
	push	dword SEL_DATA
	push	dword .flat
	mov	ebx, esp
	FAULT	EXC_GP, SEL_DATA, retf
	CHECK	esp, ebx
	mov	dword [esp + 4], 0
	FAULT	EXC_GP, 0, retf
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc01b
	mov	dword [esp + 4], S(0)
	FAULT	EXC_NP, S(0), retf
	; RET to the same level with an immediate.
	mov	dword [esp], .same
	mov	dword [esp + 4], SEL_CODE
	retf	4
.same:
	add	ebx, 12
	CHECK	esp, ebx
	; JMP and CALL through memory.
	mov	dword [pointer], .indirect
	mov	word [pointer + 4], SEL_CODE32
	jmp	far [pointer]
.indirect:
	mov	eax, cs
	CHECK	eax, SEL_CODE32
	mov	word [pointer + 4], SEL_CODE
	mov	dword [pointer], .indirect2
	call	far [pointer]
.indirect2:
	pop	eax
	pop	ebx
	CHECK	ebx, SEL_CODE32
	FAULT	EXC_UD, 0, {db 0xff, 0xe8}	; far JMP with a register
	FAULT	EXC_UD, 0, {db 0xff, 0xd8}
	ret
.called:
	CHECK	[esp], .back
	CHECK	[esp + 4], S(0)
	mov	eax, cs
	CHECK	eax, SEL_CODE
	retf

; 16-bit code and stack segments in protected mode.
sixteen_bit:
	SET_DESCRIPTOR S(0), 0, 0xffff, 0x009b
	SET_BASE S(0), code16
	SET_DESCRIPTOR S(1), FREE_MEMORY, 0xffff, 0x0093
	mov	[saved_esp], esp
	mov	edx, 0xdead0000
	jmp	S(0):0
.back:
	mov	eax, SEL_DATA
	mov	ss, eax
	mov	ebx, esp
	mov	esp, [saved_esp]
	; ESP's upper half is kept by a 16-bit stack, and SP wraps.
	CHECK	ebx, 0xabcdfffc
	CHECK16	[FREE_MEMORY + 0xfffe], 0x1122
	CHECK16	[FREE_MEMORY + 0xfffc], 0x3344
	CHECK	edx, 0xdead7777
	CHECK	[FREE_MEMORY + 0x100], 0x55667788
	CHECK	esi, 0x12340002
	ret

user_level:
	; Privileged instructions at CPL 3: #GP(0).
	USER_FAULT EXC_GP, 0, hlt
	USER_FAULT EXC_GP, 0, lgdt [gdtr]
	USER_FAULT EXC_GP, 0, lidt [idtr]
	USER_FAULT EXC_GP, 0, lldt ax
	USER_FAULT EXC_GP, 0, ltr ax
	USER_FAULT EXC_GP, 0, mov eax, cr0
	USER_FAULT EXC_GP, 0, mov cr3, eax
	USER_FAULT EXC_GP, 0, mov eax, dr0
	USER_FAULT EXC_GP, 0, clts
	USER_FAULT EXC_GP, 0, lmsw ax
	USER_FAULT EXC_GP, 0, invd
	USER_FAULT EXC_GP, 0, wbinvd
	USER_FAULT EXC_GP, 0, invlpg [0]
	USER_FAULT EXC_GP, 0, rdmsr
	USER_FAULT EXC_GP, 0, wrmsr
	USER_FAULT EXC_GP, 0, cli
	USER_FAULT EXC_GP, 0, sti
	USER_FAULT EXC_GP, 0, in al, 0x80
	USER_FAULT EXC_GP, SEL_CODE, jmp SEL_CODE:guest_main
	USER_FAULT EXC_UD, 0, {db 0x0f, 0x0b}
	mov	eax, SEL_DATA
	USER_FAULT EXC_GP, SEL_DATA, mov es, ax
	USER_FAULT EXC_GP, SEL_DATA, mov ss, ax
	mov	eax, SEL_USER_DATA & ~3
	USER_FAULT EXC_UD, 0, {db 0x0f, 0xff} ; UD0
	USER	.ds_rpl0		; RPL 0 is fine for DS, not for SS
	CAUGHT	EXC_GP, SEL_USER_DATA & ~3, .ss_rpl0
	CHECK	[caught_es], SEL_USER_DATA & ~3
	; From CPL 3, the stack comes from the TSS.
	CHECK	[caught_cs], SEL_USER_CODE32
	CHECK	[caught_ss], SEL_USER_DATA
	CHECK	[caught_xsp], user_stack_top
	CHECK	[caught_frame], stack0_top - 20
	CHECK	[caught_handler_ss], SEL_DATA
	; A return to CPL 3 nulls segment registers that it must not keep; conforming code stays.
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc09f
	LOAD	fs, S(0)
	LOAD	gs, SEL_DATA
	CATCH	.nulled
	push	dword SEL_USER_DATA
	push	dword user_stack_top
	push	dword SEL_USER_CODE32
	push	dword .ud
	retf
.nulled:
	CAUGHT	EXC_UD, 0, .ud
	CHECK	[caught_gs], 0
	CHECK	[caught_fs], S(0)
	CHECK	[caught_ds], 0
	; RETF n releases on both stacks.
	CATCH	.released
	push	dword SEL_USER_DATA
	push	dword user_stack_top - 0x100
	push	dword 1
	push	dword 2
	push	dword SEL_USER_CODE32
	push	dword .ud
	retf	8
.released:
	CAUGHT	EXC_UD, 0, .ud
	CHECK	[caught_xsp], user_stack_top - 0x100 + 8
	; Bad outer stacks.
	push	dword SEL_DATA
	push	dword user_stack_top
	push	dword SEL_USER_CODE32
	push	dword .ud
	FAULT	EXC_GP, SEL_DATA, retf
	mov	dword [esp + 12], 0
	FAULT	EXC_GP, 0, retf
	SET_DESCRIPTOR S(1), 0, 0xfffff, 0xc073
	mov	dword [esp + 12], S(1) | 3
%ifndef ON_TCG				; (it gives #NP)
	FAULT	EXC_SS, S(1), retf
%endif
	add	esp, 16
%ifndef ON_TCG
	; Stack limits: #SS(0).
	SET_DESCRIPTOR S(1), 0, 0xfffff, 0xc0f3
	SET_DESCRIPTOR S(2), FREE_MEMORY, 0xfff, 0x40f3
	ENTER_AT SEL_USER_CODE32, .push, S(2) | 3, 0x1004
	CAUGHT	EXC_SS, 0, .push
	CHECK	[caught_xsp], 0x1004
	ENTER_AT SEL_USER_CODE32, .pop, S(2) | 3, 0xffe
	CAUGHT	EXC_SS, 0, .pop
	ENTER_AT SEL_USER_CODE32, .push_twice, S(2) | 3, 0x1000
	CAUGHT	EXC_UD, 0, .push_end
	CHECK	[caught_xsp], 0xff8
	ENTER_AT SEL_USER_CODE32, .push, S(2) | 3, 2
	CAUGHT	EXC_SS, 0, .push
	mov	ebp, 0x2000
	ENTER_AT SEL_USER_CODE32, .by_ebp, S(2) | 3, 0x1000
	CAUGHT	EXC_SS, 0, .by_ebp
	ENTER_AT SEL_USER_CODE32, .call, S(2) | 3, 0
	CAUGHT	EXC_SS, 0, .call
	; An expand-down stack.
	SET_DESCRIPTOR S(2), FREE_MEMORY, 0xfff, 0x40f7
	ENTER_AT SEL_USER_CODE32, .push_twice, S(2) | 3, 0x1004
	CAUGHT	EXC_SS, 0, .push_second
	CHECK	[caught_xsp], 0x1000
%endif
	ret
.ds_rpl0:
	mov	es, ax
.ss_rpl0:
	mov	ss, ax
.ud:	ud2
.push:	push	eax
	ud2
.pop:	pop	eax
	ud2
.push_twice:
	push	eax
.push_second:
	push	eax
.push_end:
	ud2
.by_ebp:
	mov	eax, [ebp]
	ud2
.call:	call	.ud

bits 16
code16:
	mov	ax, S(1)
	mov	ss, ax
	mov	esp, 0xabcd0000
	push	word 0x1122
	push	word 0x3344
	mov	dx, 0x7777		; the upper half stays
	mov	es, ax
	mov	dword [es:0x100], 0x55667788
	a32 mov	eax, [dword es:0x100]
	mov	esi, 0x12340000
	lodsw				; of DS (flat): SI alone moves
	jmp	dword SEL_CODE:sixteen_bit.back
bits 32

section .data
	align	8
pointer: dd 0, 0
small_gdtr: dw 0
	dd	0
saved_esp: dd 0
