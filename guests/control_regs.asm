; What control registers and MSRs refuse, CR8, XCR0, RDPMC, RDTSC, RDTSCP and who may use them.
%define GUEST "control_regs"
%define GUEST_BITS 64
%include "guest.inc"

guest_main:
	call	cr0_rules
	call	cr4_rules
	call	cr8_rules
	call	efer_rules
	call	msr_rules
	call	time_stamps
	call	invisible
	call	xcr0_rules
	ret

%macro TRY_CR 2			; register, bit: #GP when set
	mov	rax, %1
	bts	rax, %2
	FAULT	EXC_GP, 0, mov %1, rax
%endmacro

cr0_rules:
	mov	rbx, cr0
	mov	rax, rbx
	or	eax, CR0_NW
	FAULT	EXC_GP, 0, mov cr0, rax
	or	eax, CR0_CD
	WORKS	mov cr0, rax
	mov	cr0, rbx
	TRY_CR	cr0, 32
	TRY_CR	cr0, 63
	; Reserved bits of the low half are ignored; ET reads as 1.
	mov	rax, rbx
	or	eax, 1 << 10
	and	eax, ~CR0_ET
	WORKS	mov cr0, rax
	mov	rax, cr0
	CHECK	rax, rbx
	; MOV to CR ignores mod; prefixes do not matter either. R8 needs REX.
	db	0x0f, 0x20, 0x00		; MOV RAX, CR0 with mod 0
	CHECK	rax, rbx
	FAULT	EXC_UD, 0, {db 0x0f, 0x20, 0xc8} ; CR1
	FAULT	EXC_UD, 0, {db 0x0f, 0x20, 0xe8} ; CR5
	FAULT	EXC_UD, 0, {db 0x44, 0x0f, 0x20, 0xc8} ; CR9
	USER_FAULT EXC_GP, 0, mov rax, cr0
	USER_FAULT EXC_GP, 0, mov cr0, rax
	USER_FAULT EXC_GP, 0, mov cr4, rax
	USER_FAULT EXC_GP, 0, mov rax, cr2
	USER_FAULT EXC_GP, 0, mov cr8, rax
	ret

cr4_rules:
	TRY_CR	cr4, 15
	TRY_CR	cr4, 32
	TRY_CR	cr4, 63
	mov	rax, cr4
	btr	rax, 5
	FAULT	EXC_GP, 0, mov cr4, rax		; PAE in long mode
	; LA57 cannot be changed in long mode.
	TRY_CR	cr4, 12
	; TSD: RDTSC is for CPL 0.
	SET_CR	cr4, CR4_TSD
	USER_FAULT EXC_GP, 0, rdtsc
	WORKS	rdtsc
	CLEAR_CR cr4, CR4_TSD
	USER_WORKS rdtsc
	; OSFXSR off: SSE is #UD.
	CLEAR_CR cr4, CR4_OSFXSR
	FAULT	EXC_UD, 0, xorps xmm0, xmm0
	FAULT	EXC_UD, 0, movdqa xmm0, [buffer]
	WORKS	fld1
	WORKS	fstp st0
	SET_CR	cr4, CR4_OSFXSR
	WORKS	xorps xmm0, xmm0
	ret

cr8_rules:
	mov	eax, 5
	mov	cr8, rax
	mov	rbx, cr8
	CHECK	rbx, 5
	LAPIC_READ ebx, 0x80
	CHECK	rbx, 0x50
	LAPIC_WRITE 0x80, 0x7f
	mov	rbx, cr8
	CHECK	rbx, 7
	LAPIC_READ ebx, 0x80
	CHECK	rbx, 0x7f
	mov	eax, 16
	FAULT	EXC_GP, 0, mov cr8, rax
	mov	rax, 1 << 40
	FAULT	EXC_GP, 0, mov cr8, rax
	xor	eax, eax
	mov	cr8, rax
	LAPIC_READ ebx, 0x80
	CHECK	rbx, 0
	ret

efer_rules:
	RDMSR_	MSR_EFER
	mov	ebx, eax
	bts	eax, 1
	FAULT	EXC_GP, 0, wrmsr
	mov	eax, ebx
	bts	eax, 9
	FAULT	EXC_GP, 0, wrmsr
	mov	eax, ebx
	mov	edx, 1
	FAULT	EXC_GP, 0, wrmsr
	xor	edx, edx
	mov	eax, ebx
	btr	eax, 8
	FAULT	EXC_GP, 0, wrmsr
	mov	eax, ebx
	WORKS	wrmsr
	ret

%define MSR_REFUSES MSR_REFUSES_ __?LINE?__,
%macro MSR_REFUSES_ 4			; line, msr, low, high
	mov	ecx, %2
	mov	eax, %3
	mov	edx, %4
	FAULT_	%1, EXC_GP, 0, wrmsr
%endmacro
%define MSR_HOLDS MSR_HOLDS_ __?LINE?__,
%macro MSR_HOLDS_ 4			; line, msr, low, high: reads back; restored
	mov	ecx, %2
	rdmsr
	mov	esi, eax
	mov	edi, edx
	mov	eax, %3
	mov	edx, %4
	wrmsr
	xor	eax, eax
	xor	edx, edx
	rdmsr
	CHECK_	%1, rax, %3
	CHECK_	%1, rdx, %4
	mov	eax, esi
	mov	edx, edi
	wrmsr
%endmacro

msr_rules:
	; One that does not exist.
	mov	ecx, 0x00005555
	FAULT	EXC_GP, 0, rdmsr
	FAULT	EXC_GP, 0, wrmsr
	mov	ecx, 0xdeadbeef
	FAULT	EXC_GP, 0, rdmsr
	; Canonical addresses.
	MSR_REFUSES MSR_LSTAR, 0, 0x8000
	MSR_REFUSES MSR_CSTAR, 0, 0x8000
	MSR_REFUSES MSR_FS_BASE, 0, 0x8000
	MSR_REFUSES MSR_GS_BASE, 0, 0xffff7fff
	MSR_REFUSES MSR_KERNEL_GS_BASE, 0, 0x8000
	MSR_REFUSES MSR_SYSENTER_EIP, 0, 0x8000
	MSR_HOLDS MSR_LSTAR, 0x12345678, 0xffff8000
	MSR_HOLDS MSR_STAR, 0x9abcdef0, 0x00230010
	MSR_HOLDS MSR_SFMASK, 0x00044700, 0
	MSR_HOLDS MSR_FS_BASE, 0x87654321, 0x7fff
	MSR_HOLDS MSR_KERNEL_GS_BASE, 0xfffff000, 0xffffffff
	MSR_HOLDS MSR_SYSENTER_ESP, 0x1000, 0xffff8000
	; PAT: 0, 1, 4, 5, 6, 7 only.
	MSR_REFUSES MSR_PAT, 0x00070402, 0
	MSR_REFUSES MSR_PAT, 0x00070403, 0
	MSR_REFUSES MSR_PAT, 0x00070408, 0
	MSR_HOLDS MSR_PAT, 0x00070406, 0x00070106
	; The APIC base.
	RDMSR_	MSR_APIC_BASE
	CHECK_BITS eax, 0xfffff900, 0xfee00900	; enabled, bootstrap processor
	bts	eax, 9
	FAULT	EXC_GP, 0, wrmsr
	; TSC and its adjustment move together.
	mov	eax, 7
	xor	ecx, ecx
	cpuid
	bt	ebx, 1
	jnc	.no_adjust
	RDMSR_	MSR_TSC_ADJUST
	mov	esi, eax
	WRMSR_	MSR_TSC, 0, 0x1000
	rdtsc
	shr	edx, 8
	CHECK	rdx, 0x10
	RDMSR_	MSR_TSC_ADJUST
	CHECK_BITS edx, 0xfffff000, 0		; about 1000h, whatever the TSC was
	xor	edx, edx
	mov	eax, esi
	mov	ecx, MSR_TSC_ADJUST
	wrmsr
.no_adjust:
	; FS and GS: the MSR and a selector load.
	WRMSR_	MSR_GS_BASE, buffer
	mov	qword [buffer], 0x7788
	CHECK	[gs:0], 0x7788
	mov	eax, SEL_DATA
	mov	gs, eax
	RDMSR_	MSR_GS_BASE
	CHECK	rax, 0
	CHECK	rdx, 0
	; RDMSR and WRMSR take ECX alone, and clear the upper halves.
	mov	rcx, (1 << 32) | MSR_STAR
	mov	rax, -1
	mov	rdx, -1
	WORKS	rdmsr
	shr	rax, 32
	CHECK	rax, 0
	shr	rdx, 32
	CHECK	rdx, 0
	USER_FAULT EXC_GP, 0, rdmsr
	USER_FAULT EXC_GP, 0, wrmsr
	ret

time_stamps:
	rdtsc
	mov	ebx, eax
	mov	esi, edx
	mov	ecx, 1000
.loop:	loop	.loop
	rdtsc
	shl	rdx, 32
	or	rdx, rax
	shl	rsi, 32
	or	rbx, rsi
	cmp	rdx, rbx
	HOLDS	a, "RDTSC goes up"
	mov	eax, 0x80000001
	cpuid
	bt	edx, 27
	jnc	.end
	WRMSR_	MSR_TSC_AUX, 0x1234abcd
	mov	rcx, -1
	rdtscp
	CHECK	rcx, 0x1234abcd
	SET_CR	cr4, CR4_TSD
	USER_FAULT EXC_GP, 0, rdtscp
	CLEAR_CR cr4, CR4_TSD
	USER_WORKS rdtscp
.end:
	; RDPMC without CR4.PCE: #GP at CPL 3.
	xor	ecx, ecx
	USER_FAULT EXC_GP, 0, rdpmc
	ret

; Privileged instructions at CPL 3.
invisible:
	USER_FAULT EXC_GP, 0, hlt
	USER_FAULT EXC_GP, 0, clts
	USER_FAULT EXC_GP, 0, invd
	USER_FAULT EXC_GP, 0, wbinvd
	USER_FAULT EXC_GP, 0, lgdt [buffer]
	USER_FAULT EXC_GP, 0, lidt [buffer]
	USER_FAULT EXC_GP, 0, lmsw ax
	USER_FAULT EXC_GP, 0, swapgs
	USER_FAULT EXC_GP, 0, cli
	mov	ebx, 0x1234
	USER_FAULT EXC_GP, 0, mov dr0, rbx
	; LGDT and LIDT with an address that is not canonical.
	mov	rax, 0x800000000000
	mov	word [buffer], 0xfff
	mov	[buffer + 2], rax
	FAULT	EXC_GP, 0, lgdt [buffer]
	FAULT	EXC_GP, 0, lidt [buffer]
	ret

xcr0_rules:
	mov	eax, 1
	cpuid
	bt	ecx, 26
	jnc	.end
	xor	ecx, ecx
	FAULT	EXC_UD, 0, xgetbv		; without CR4.OSXSAVE
	FAULT	EXC_UD, 0, xsetbv
	mov	eax, 1
	cpuid
	CHECK_BITS ecx, 1 << 27, 0
	SET_CR	cr4, CR4_OSXSAVE
	mov	eax, 1
	cpuid
	CHECK_BITS ecx, 1 << 27, 1 << 27
	xor	ecx, ecx
	xgetbv
	CHECK	rax, 1
	CHECK	rdx, 0
	xor	edx, edx
	xor	eax, eax
	FAULT	EXC_GP, 0, xsetbv		; x87 cannot go
	mov	eax, 5
	FAULT	EXC_GP, 0, xsetbv		; AVX without SSE
	mov	eax, 1 << 31 | 3
	FAULT	EXC_GP, 0, xsetbv
	mov	eax, 3
	mov	edx, 0x80000000
	FAULT	EXC_GP, 0, xsetbv
	xor	edx, edx
	WORKS	xsetbv
	mov	ecx, 5
	FAULT	EXC_GP, 0, xsetbv
	FAULT	EXC_GP, 0, xgetbv
	xor	ecx, ecx
	xgetbv
	CHECK	rax, 3
	USER_WORKS xgetbv
	USER_FAULT EXC_GP, 0, xsetbv
	mov	eax, 1
	xor	ecx, ecx
	xor	edx, edx
	xsetbv
	CLEAR_CR cr4, CR4_OSXSAVE
.end:
	ret

section .data
	align	16
buffer:	dq 0, 0
