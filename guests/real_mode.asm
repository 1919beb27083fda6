; Real mode: addresses, limits, the IVT, far transfers, 16- and 32-bit operands, and segments with limits from
; protected mode ("unreal" mode) (SDM 3B chapter 21).
%define GUEST "real_mode"
%define GUEST_BITS 32
%include "guest.inc"
%include "real.inc"

guest_main:
	CALL_REAL basics
	CALL_REAL interrupts
	CALL_REAL limits
	CALL_REAL transfers
	CALL_REAL privileged
	; Big segments: FS gets 4 GiB in protected mode and keeps them.
	mov	eax, SEL_DATA
	mov	fs, eax
	mov	dword [FREE_MEMORY], 0x12345678
	CALL_REAL unreal
	CHECK	[FREE_MEMORY + 4], 0x600df00d
	; Protected mode without a far jump, from inside real mode.
	CALL_REAL protected_inside
	ret

section .real
bits 16
basics:
	; segment * 16 + offset
	mov	ax, 0x1000
	mov	es, ax
	mov	dword [es:0x10], 0xabcd1234
	mov	ax, 0x1001
	mov	es, ax
	RCHECK	[es:0], 0xabcd1234
	mov	ax, es
	RCHECK16 ax, 0x1001
	; Segment registers read back; 32-bit registers and addresses work.
	mov	eax, 0xffffffff
	inc	eax
	RCHECK	eax, 0
	mov	ebx, 0x1
	mov	ecx, 0x2
	lea	eax, [ebx + ecx * 4 + 7]
	RCHECK	eax, 0x10
	; SP wraps by 16 bits; the upper half of ESP stays.
	mov	ebx, esp
	mov	ax, 0x2000
	mov	ss, ax
	mov	esp, 0xabcd0002
	push	word 0x1111
	push	word 0x2222
	mov	ecx, esp
	xor	ax, ax
	mov	ss, ax
	mov	esp, ebx
	RCHECK	ecx, 0xabcdfffe
	mov	ax, 0x2000
	mov	es, ax
	RCHECK16 [es:0], 0x1111
	RCHECK16 [es:0xfffe], 0x2222
	; Addresses of 16 bits wrap.
	mov	bx, 0xffff
	mov	word [es:0x10], 0x3333
	RCHECK16 [es:bx + 0x11], 0x3333
	; LOOP and JCXZ use CX; LODS uses SI.
	mov	ecx, 0x10001
	xor	ax, ax
.loop:	inc	ax
	loop	.loop
	RCHECK16 ax, 1
	RCHECK	ecx, 0x10000
	mov	esi, 0xf0000
	mov	si, 0x10
	es lodsw
	RCHECK16 ax, 0x3333
	RCHECK	esi, 0xf0012
	; MOV from a control register; PE is clear.
	smsw	ax
	and	ax, 1
	RCHECK16 ax, 0
	; Data segment loads never fault.
	mov	ax, 0xffff
	mov	es, ax
	mov	gs, ax
	; PUSHF has IOPL and NT as they are.
	pushf
	pop	ax
	or	ax, 0x7000
	push	ax
	popf
	pushf
	pop	bx
	and	bx, 0x7000
	RCHECK16 bx, 0x7000
	push	word 2
	popf
	ret

interrupts:
	RTRAP	3, int3
	RTRAP	0x10, {int 0x10}
	RCHECK16 [cs:r_cs], 0
	RTRAP	1, {db 0xf1}
	mov	al, 0x7f
	inc	al
	RTRAP	4, into
	xor	cx, cx
	RFAULT	0, div cx
	RFAULT	6, ud2
	RFAULT	6, {db 0xf0, 0x90}
	mov	word [cs:.bounds], 5
	mov	word [cs:.bounds + 2], 10
	mov	ax, 11
	RFAULT	5, bound ax, [cs:.bounds]
	; Instructions that protected mode alone has.
	RFAULT	6, sldt ax
	RFAULT	6, str ax
	RFAULT	6, lldt ax
	RFAULT	6, ltr ax
	RFAULT	6, lar ax, ax
	RFAULT	6, lsl ax, ax
	RFAULT	6, verr ax
	RFAULT	6, arpl ax, ax
	; IF and TF are cleared, and come back by IRET.
	push	word IF | CF | 2
	popf
	cli
	push	word CF | AF | 2
	popf
	mov	word [cs:r_resume], .resumed
	int	0x11
.resumed:
	mov	ax, [cs:r_flags]
	RCHECK16 ax, CF | AF | 2
	; IRET by hand; 16 and 32 bits.
	push	word CF | 2
	push	cs
	push	word .iret
	iretw
.iret:	pushf
	pop	ax
	RCHECK16 ax, CF | 2
	push	dword ZF | ID | 2
	push	dword 0
	push	dword .iretd
	iretd
.iretd:	pushfd
	pop	eax
	and	eax, ZF | ID | CF | VM
	RCHECK	eax, ZF | ID
	; A vector beyond the limit of the IDT is a double fault, or #GP: through the IVT all the same.
	push	word 2
	popf
	mov	dword [cs:.idtr + 2], 0
	mov	word [cs:.idtr], 32 * 4 - 1
	lidt	[cs:.idtr]
	RFAULT	13, {int 0x80}
	mov	word [cs:.idtr], 0x3ff
	lidt	[cs:.idtr]
	; The IVT elsewhere.
	mov	ax, 0x3000
	mov	es, ax
	mov	word [es:0x12 * 4], .moved
	mov	word [es:0x12 * 4 + 2], 0
	mov	word [cs:.idtr], 0x3ff
	mov	dword [cs:.idtr + 2], 0x30000
	lidt	[cs:.idtr]
	xor	bx, bx
	int	0x12
	mov	dword [cs:.idtr + 2], 0
	lidt	[cs:.idtr]
	RCHECK16 bx, 0x77
	ret
.moved:	mov	bx, 0x77
	iret
.bounds: dw 0, 0
.idtr:	dw 0
	dd 0

; 64 KiB: #GP, or #SS by the stack segment.
limits:
%ifndef ON_TCG
	xor	ax, ax
	mov	es, ax
	RFAULT	13, mov ax, [es:0xffff]
	RFAULT	13, mov [es:0xffff], ax
	mov	eax, [es:0xfffc]
	RFAULT	13, mov eax, [es:0xfffd]
	mov	ebx, 0x10000
	RFAULT	13, mov al, [es:ebx]
	RFAULT	13, mov al, [ebx]
	RFAULT	12, mov al, [ss:ebx]
	mov	ebp, 0x10000
	RFAULT	12, mov al, [ebp]
	mov	bp, 0xffff
	RFAULT	12, mov ax, [bp]
	; A string that reaches the end: SI stops there.
	mov	si, 0xfffd
	mov	cx, 4
	cld
	RFAULT	13, rep lodsw
	RCHECK16 si, 0xffff
	RCHECK16 cx, 3
%endif
	ret

transfers:
	call	0:.far
.back:
	RCHECK16 bx, .back
	RCHECK16 dx, 0
	jmp	0x800:.other - 0x8000
.other:	mov	bx, cs
	jmp	0:.zero
.zero:
	RCHECK16 bx, 0x800
	; 32-bit far call and return.
	call	dword 0:.far32
.back32:
	RCHECK	ebx, .back32
	; RETF n
	push	word 0x55
	push	word 0x66
	push	cs
	push	word .ret4
	mov	bx, sp
	retf	4
.ret4:	mov	ax, sp
	sub	ax, bx
	RCHECK16 ax, 8
	; PUSH SP pushes the old value.
	mov	bx, sp
	push	sp
	pop	ax
	sub	ax, bx
	RCHECK16 ax, 0
	; PUSHA and POPA.
	mov	eax, 0x11111111
	mov	edi, 0x77777777
	pusha
	xor	eax, eax
	xor	edi, edi
	popa
	RCHECK	eax, 0x1111
	RCHECK	edi, 0x7777
	pushad
	mov	eax, [esp + 28]
	RCHECK	eax, 0x1111
	add	sp, 32
	; ENTER and LEAVE.
	mov	bp, 0x4444
	mov	bx, sp
	enter	16, 0
	mov	ax, bx
	sub	ax, sp
	RCHECK16 ax, 18
	leave
	RCHECK16 bp, 0x4444
	sub	bx, sp
	RCHECK16 bx, 0
	; LES, LDS.
	mov	word [cs:.pointer], 0x1234
	mov	word [cs:.pointer + 2], 0x1000
	les	di, [cs:.pointer]
	RCHECK16 di, 0x1234
	mov	ax, es
	RCHECK16 ax, 0x1000
	ret
.far:	mov	bp, sp
	mov	bx, [bp]
	mov	dx, [bp + 2]
	retf
.far32:	mov	bp, sp
	mov	ebx, [bp]
	o32 retf
.pointer: dw 0, 0

privileged:
	; Everything is allowed: HLT aside, try a few.
	cli
	clts
	mov	eax, cr0
	mov	cr0, eax
	mov	eax, cr3
	mov	eax, dr7
	in	al, 0x61
	mov	ecx, MSR_EFER
	rdmsr
	invd
	wbinvd
	cpuid
	sgdt	[cs:.table]
	RCHECK16 [cs:.table], GDT_ENTRIES * 8 - 1
	; LIDT with a 16-bit operand loads 24 bits of base.
	mov	word [cs:.table], 0x3ff
	mov	dword [cs:.table + 2], 0xff000000
	o16 lidt [cs:.table]
	RTRAP	3, int3
	ret
.table:	dw 0
	dd 0

unreal:
	mov	ebx, FREE_MEMORY
	RCHECK	[fs:ebx], 0x12345678
	mov	dword [fs:ebx + 4], 0x600df00d
	; Loading the register in real mode changes the base alone; the limit stays.
	mov	ax, 0x10
	mov	fs, ax
	RCHECK	[fs:ebx - 0x100], 0x12345678
	xor	ax, ax
	mov	fs, ax
	ret

; PE on and off without leaving CS: the code goes on with CS's cached descriptor.
protected_inside:
	cli
	o32 lgdt [cs:real_gdtr]
	mov	eax, cr0
	or	al, CR0_PE
	mov	cr0, eax
	nop
	mov	bx, SEL_DATA
	mov	gs, bx			; a protected mode selector
	mov	eax, cr0
	and	al, ~CR0_PE
	mov	cr0, eax
	mov	bx, gs
	RCHECK16 bx, SEL_DATA
	mov	ebx, FREE_MEMORY
	RCHECK	[gs:ebx], 0x12345678
	xor	bx, bx
	mov	gs, bx
	RCHECK	[gs:ebx], 0x12345678
	; LMSW sets PE, and cannot clear it.
	smsw	ax
	or	ax, 1
	lmsw	ax
	and	ax, ~1
	lmsw	ax
	smsw	bx
	mov	eax, cr0
	and	al, ~CR0_PE
	mov	cr0, eax
	and	bx, 1
	RCHECK16 bx, 1
	ret

section .text
