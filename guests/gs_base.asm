; FS and GS: bases by MSR, by selector, by FSGSBASE; SWAPGS (APM 2 4.5.3, SDM 2B).
%define GUEST "gs_base"
%define GUEST_BITS 64
%include "guest.inc"

guest_main:
	xor	eax, eax
	mov	fs, eax
	mov	gs, eax
	; SWAPGS exchanges GS.base and the MSR.
	WRMSR_	MSR_GS_BASE, one
	WRMSR_	MSR_KERNEL_GS_BASE, two
	CHECK	[gs:0], 0x1111
	swapgs
	CHECK	[gs:0], 0x2222
	RDMSR_	MSR_GS_BASE
	CHECK	rax, two
	RDMSR_	MSR_KERNEL_GS_BASE
	CHECK	rax, one
	swapgs
	CHECK	[gs:0], 0x1111
	USER_FAULT EXC_GP, 0, swapgs
	; The user's access goes by the same base.
	USER_WORKS mov rax, [gs:0]
	CHECK	rax, 0x1111
	WRMSR_	MSR_FS_BASE, two
	USER_WORKS mov rax, [fs:8]
	CHECK	rax, 0x3333
	; LEA takes no base.
	lea	rax, [gs:0x10]
	CHECK	rax, 0x10
	; 32-bit addresses: base is added after the truncation.
	mov	rbx, 0x500000008
	mov	rax, [fs:ebx]
	CHECK	rax, 0x3333
	mov	rbx, -8
	mov	rax, [fs:rbx + 16]
	CHECK	rax, 0x3333
	; A base that makes the sum not canonical.
	WRMSR_	MSR_FS_BASE, 0xfffff000, 0x7fff
	mov	ebx, 0x1000
	FAULT	EXC_GP, 0, mov rax, [fs:rbx]
	WRMSR_	MSR_FS_BASE, 0xffff8000, 0xffffffff	; a negative one: the sum wraps
	mov	rbx, one + 0x8000
	mov	rax, [fs:rbx]
	CHECK	rax, 0x1111
	; Other segments have base 0, whatever their descriptors say.
	SET_DESCRIPTOR SEL_FREE, 0x1000, 0xfffff, 0xc093
	mov	eax, SEL_FREE
	mov	es, eax
	mov	ds, eax
	mov	rax, [one]
	CHECK	rax, 0x1111
	mov	eax, SEL_DATA
	mov	ds, eax
	mov	es, eax
	; A selector load takes 32 bits of base and clears the rest.
	SET_DESCRIPTOR SEL_FREE, 0, 0xfffff, 0xc0f3
	SET_BASE SEL_FREE, two
	WRMSR_	MSR_FS_BASE, 0, 0x1234
	mov	eax, SEL_FREE
	mov	fs, eax
	RDMSR_	MSR_FS_BASE
	CHECK	rax, two
	CHECK	rdx, 0
	CHECK	[fs:0], 0x2222
	; No limits in 64-bit mode.
	SET_DESCRIPTOR SEL_FREE, 0, 0, 0x40f3
	SET_BASE SEL_FREE, one
	mov	eax, SEL_FREE
	mov	fs, eax
	WORKS	mov rax, [fs:8]
	; In compatibility mode there are.
	mov	eax, SEL_USER_DATA
	mov	ds, eax
%ifndef ON_TCG
	USER32	.code32
	CAUGHT	EXC_GP, 0, .code32_at
%endif
	; A return to user mode nulls a selector that it may not keep.
	mov	eax, SEL_DATA
	mov	gs, eax
	WRMSR_	MSR_GS_BASE, one
	USER	.ud
	CHECK	[caught_gs], 0
	mov	eax, 7
	xor	ecx, ecx
	cpuid
	bt	ebx, 0
	jc	.have
	mov	rax, cr4
	bts	rax, 16
	FAULT	EXC_GP, 0, mov cr4, rax
	PRINT	GUEST, ": no FSGSBASE", 10
	ret
.have:
	FAULT	EXC_UD, 0, rdfsbase rax
	FAULT	EXC_UD, 0, wrgsbase rax
	SET_CR	cr4, CR4_FSGSBASE
	mov	rax, 0x7fff12345678
	wrfsbase rax
	rdfsbase rbx
	CHECK	rbx, rax
	mov	rbx, -1
	rdfsbase ebx
	CHECK	rbx, 0x12345678
	mov	rax, 0xffffffff87654321
	wrfsbase eax
	rdfsbase rbx
	CHECK	rbx, 0x87654321
	mov	rax, 0x800000000000
	FAULT	EXC_GP, 0, wrfsbase rax
	FAULT	EXC_GP, 0, wrgsbase rax
	mov	eax, two
	USER_WORKS wrgsbase rax
	CHECK	[gs:0], 0x2222
	USER_WORKS rdgsbase rcx
	CHECK	rcx, two
	; They are 64-bit instructions.
	USER32	.code32_fs
	CAUGHT	EXC_UD, 0, .code32_fs
	CLEAR_CR cr4, CR4_FSGSBASE
	USER_FAULT EXC_UD, 0, rdgsbase rax
	ret
.ud:	ud2
bits 32
.code32:
	mov	al, [fs:0]
.code32_at:
	mov	al, [fs:1]
	ud2
.code32_fs:
	db	0xf3, 0x0f, 0xae, 0xc0
	ud2
bits 64

section .data
	align	16
one:	dq 0x1111, 0
two:	dq 0x2222, 0x3333
