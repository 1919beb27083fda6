; String instructions in hot loops (lib/string_hot.inc), with faults whose registers are looked at, and interrupts in the
; middle of long ones (SDM 2B REP).
%define GUEST "string_hot"
%define GUEST_BITS 64
%include "guest.inc"
%include "interrupts.inc"
%include "string_hot.inc"

V	equ 0x60
BIG	equ 0x1800000
BIG_SIZE equ 24 << 20

guest_main:
	call	string_random
	call	string_patch
	call	string_mmio
	call	partial
	call	vectors
	call	interrupted
	ret

; What is done before the fault stays done, and the registers say so, each time.
partial:
	call	string_area
	xor	ebp, ebp
	mov	dword [s_pt + 1 * 8], 0
	mov	dword [s_pt + 4 * 8], WHERE(4) + PTE_P | PTE_U
	mov	rax, cr3
	mov	cr3, rax
	CLEAR_CR cr0, CR0_WP			; a supervisor writes anywhere ...
	SET_CR	cr0, CR0_WP			; ... no more
.again:
	mov	esi, AREA + 0x2000
	mov	edi, AREA + 0xff0
	mov	ecx, 0x20
	mov	ebx, AREA + 0x1000
	FAULT_PF PF_W, rbx, rep movsb
	CHECK	rdi, rbx
	CHECK	rsi, AREA + 0x2010
	CHECK	rcx, 0x10
	mov	esi, AREA + 0xffe
	mov	edi, AREA + 0x3000
	mov	ecx, 5
	FAULT_PF 0, rbx, rep movsd
	CHECK	rcx, 5
	CHECK	rsi, AREA + 0xffe
	mov	esi, AREA + 0x1004
	mov	edi, AREA + 0x3000
	mov	ecx, 5
	mov	edx, AREA + 0x1004
	FAULT_PF 0, rdx, movsq
	CHECK	rdi, AREA + 0x3000
	; Read-only, downwards.
	mov	edi, AREA + 0x5008
	mov	ecx, 5
	mov	edx, AREA + 0x4ff8
	std
	FAULT_PF PF_P | PF_W, rdx, rep stosq
	cld
	CHECK	rdi, AREA + 0x4ff8
	CHECK	rcx, 3
	mov	edi, AREA + 0x4000
	mov	edx, AREA + 0x4000
	FAULT_PF PF_P | PF_W, rdx, stosb
	CHECK	rdi, AREA + 0x4000
	; Comparisons that find nothing up to there.
	mov	al, [AREA + 0xffd]
	mov	[AREA + 0xffe], al
	mov	[AREA + 0xfff], al
	mov	edi, AREA + 0xffd
	mov	ecx, 100
	FAULT_PF 0, rbx, repe scasb
	CHECK	rcx, 97
	CHECK	rdi, rbx
	mov	esi, AREA + 0xffd
	mov	edi, AREA + 0xffe
	mov	ecx, 100
	FAULT_PF 0, rbx, repe cmpsb
	CHECK	rcx, 98
	CHECK	rdi, rbx
	; Addresses that are none.
	mov	rsi, 0x8000000000000000
	mov	edi, AREA + 0x3000
	mov	ecx, 2
	FAULT	EXC_GP, 0, rep movsb
	CHECK	rcx, 2
	mov	rdi, 0x800000000000
	FAULT	EXC_GP, 0, stosd
	inc	ebp
	cmp	ebp, 60
	jb	.again
	ret

; Vector registers are nobody's but the guest's, whatever copies.
vectors:
	mov	eax, 1
	cpuid
	bt	ecx, 26				; XSAVE
	jnc	.none
	mov	eax, 7
	xor	ecx, ecx
	cpuid
	bt	ebx, 16				; AVX512F
	jnc	.none
	SET_CR	cr4, CR4_OSXSAVE | CR4_OSFXSR
	xor	ecx, ecx
	mov	eax, 0xe7
	xor	edx, edx
	xsetbv
	call	string_area
	mov	eax, 0x12345678
	vpbroadcastd zmm16, eax
	vpslld	zmm17, zmm16, 1
	mov	ebp, 600
.again:
	; Patterns that go with the round, from the last bytes of a page into the next.
	vpaddd	zmm16, zmm16, zmm17
	vmovdqa64 zmm18, zmm16
	mov	edi, AREA + 0x1000 - 37
	mov	ecx, ebp
	mov	eax, ebp
	rep	stosb
	mov	[AREA + 0x1000 - 37 + 5], ebp
	mov	esi, AREA + 0x1000 - 37
	mov	edi, AREA + 0x5000 - 200
	lea	ecx, [ebp + 8]
	rep	movsb
	vpcmpeqd k1, zmm16, zmm18
	kortestw k1, k1
	HOLDS	c, "ZMM16 behind REP MOVSB"
	mov	esi, AREA + 0x1000 - 37
	mov	edi, AREA + 0x5000 - 200
	lea	ecx, [ebp + 8]
	repe	cmpsb
	HOLDS	e, "the copy"
	mov	edi, AREA + 0x5000 - 200
	mov	ecx, ebp
	shr	ecx, 3
	mov	rax, 0x1122334455667788
	rep	stosq
	vpcmpeqd k1, zmm16, zmm18
	kortestw k1, k1
	HOLDS	c, "ZMM16 behind REP STOSQ"
	cmp	ebp, 8
	jb	.next
	CHECK	[rdi - 8], rax
.next:
	dec	ebp
	jnz	.again
.none:	ret

; A timer that comes every 50 microseconds or so, while strings of 24 MiB run.
note:
	LAPIC_WRITE 0xb0, 0
	mov	rax, [rdi + FRAME.ip]
	cmp	rax, [inside]
	jne	.outside
	cmp	qword [rdi + FRAME.xcx], 0
	je	.outside
	cmp	qword [rdi + FRAME.xcx], BIG_SIZE
	je	.outside
	inc	dword [middle]
.outside:
	ret

%macro BIG_ONE 3+			; size, what RSI and RDI are together at the end, instruction
	mov	dword [middle], 0
	mov	dword [tries], 20000		; a quick one is over before an interrupt comes, most times
	mov	ebp, 60
%%again:
	mov	qword [inside], %%at
	mov	esi, BIG
	mov	edi, BIG + BIG_SIZE
	mov	ecx, BIG_SIZE / %1
	mov	eax, ebp
	sti
%%at:	%3
	cli
	CHECK	rcx, 0
	add	rdi, rsi
	CHECK	rdi, %2
	cmp	dword [middle], 5
	ja	%%enough
	inc	ebp
	and	ebp, 127
	dec	dword [tries]
	jnz	%%again
%%enough:
	cmp	dword [middle], 5
	HOLDS	a, "interrupts in the middle"
%endmacro

interrupted:
	call	apic_enable
	HOOK	V, note
	LAPIC_WRITE 0x3e0, 0xb
	LAPIC_WRITE 0x320, 0x20000 | V
	LAPIC_WRITE 0x380, 50000
	BIG_ONE 1, 2 * BIG + 2 * BIG_SIZE, rep stosb
	CHECK8	[BIG + BIG_SIZE], ebp
	CHECK8	[BIG + 2 * BIG_SIZE - 1], ebp
	mov	dword [BIG], 0x11223344
	mov	dword [BIG + BIG_SIZE - 4], 0x55667788
	BIG_ONE 1, 2 * BIG + 3 * BIG_SIZE, rep movsb
	CHECK32	[BIG + BIG_SIZE], 0x11223344
	CHECK32	[BIG + 2 * BIG_SIZE - 4], 0x55667788
	BIG_ONE 8, 2 * BIG + 3 * BIG_SIZE, rep movsq
	BIG_ONE 1, 2 * BIG + 3 * BIG_SIZE, repe cmpsb
	BIG_ONE 8, 2 * BIG + 3 * BIG_SIZE, repe cmpsq
	BIG_ONE 8, 2 * BIG + 2 * BIG_SIZE, rep stosq
	mov	eax, ebp
	BIG_ONE 8, 2 * BIG + 2 * BIG_SIZE, rep lodsq
	LAPIC_WRITE 0x320, 0x10000
	ret

section .data
	align	8
inside:	dq 0
middle:	dd 0
tries:	dd 0
