; CPUID: leaves within bounds, features that agree with what the processor does, brand string, topology, hypervisor
; leaf.
%define GUEST "cpuid"
%define GUEST_BITS 64
%include "guest.inc"

%macro LEAF 1-2 0
	mov	eax, %1
	mov	ecx, %2
	cpuid
%endmacro

guest_main:
	; Upper halves are cleared.
	mov	rax, -1
	mov	rbx, -1
	mov	rcx, -1
	mov	rdx, -1
	xor	eax, eax
	cpuid
	mov	rsi, rax
	or	rsi, rbx
	or	rsi, rcx
	or	rsi, rdx
	shr	rsi, 32
	CHECK	rsi, 0
	cmp	eax, 0xd
	HOLDS	ae, "basic leaves up to 0Dh"
	mov	[highest], eax
	LEAF	0x80000000
	cmp	eax, 0x80000008
	HOLDS	ae, "extended leaves up to 80000008h"
	; What every x86-64 has.
	LEAF	1
	CHECK_BITS edx, 0x078bfbff & ~(1 << 18) & ~0x80000, 0x078bfbff & ~(1 << 18) & ~0x80000
	CHECK_BITS ecx, 1 << 13, 1 << 13	; CMPXCHG16B
	CHECK_BITS ecx, 1 << 31, 1 << 31	; a hypervisor
	mov	r12d, ecx
	mov	r13d, edx
	LEAF	0x80000001
	CHECK_BITS edx, 1 << 29 | 1 << 20 | 1 << 11, 1 << 29 | 1 << 20 | 1 << 11 ; LM, NX, SYSCALL
	CHECK_BITS ecx, 1, 1			; LAHF
	CHECK_BITS ecx, 1 << 2, 0		; no SVM
	CHECK_BITS r12d, 1 << 5, 0		; no VMX
	; OSXSAVE follows CR4.
	CHECK_BITS r12d, 1 << 27, 0
	; The APIC bit follows the APIC's base register.
	CHECK_BITS r13d, 1 << 9, 1 << 9
	RDMSR_	MSR_APIC_BASE
	btr	eax, 11
	wrmsr
	LEAF	1
	CHECK_BITS edx, 1 << 9, 0
	RDMSR_	MSR_APIC_BASE
	bts	eax, 11
	wrmsr
	; Address sizes: 48 linear bits, at least 36 physical.
	LEAF	0x80000008
	movzx	ebx, ah
	CHECK	rbx, 48
	cmp	al, 36
	HOLDS	ae, "36 physical bits"
	cmp	al, 52
	HOLDS	be, "52 physical bits"
	; Beyond the highest leaf: what the highest basic one gives (Intel), or zero (AMD).
	mov	eax, [highest]
	inc	eax
	xor	ecx, ecx
	cpuid
	; (Nothing to compare: it must just not fault.)
	LEAF	0x7fffffff
	; The features agree with what happens.
%define FEATURE FEATURE_ __?LINE?__,
%macro FEATURE_ 2+			; CF holds the bit; without it #UD
	jc	%%have
	FAULT_	%1, EXC_UD, 0, %2
	jmp	%%end
%%have:
	WORKS_	%1, %2
%%end:
%endmacro
	bt	r12d, 23
	FEATURE popcnt eax, ebx
	bt	r12d, 22
	FEATURE movbe eax, [number]
	bt	r12d, 20
	FEATURE crc32 eax, ebx
	bt	r12d, 19
	FEATURE pmuldq xmm0, xmm1
	bt	r12d, 9
	FEATURE pabsb xmm0, xmm1
	bt	r12d, 25
	FEATURE aesenc xmm0, xmm1
	bt	r12d, 1
	FEATURE pclmulqdq xmm0, xmm1, 0
	bt	r12d, 30
	FEATURE rdrand eax
	LEAF	7
	mov	r14d, ebx
	mov	r15d, ecx
	bt	r14d, 18
	FEATURE rdseed eax
	bt	r14d, 19
	FEATURE adcx eax, ebx
	bt	r14d, 20
	FEATURE clac
	bt	r14d, 23
	FEATURE clflushopt [number]
	bt	r14d, 24
	FEATURE clwb [number]
	bt	r14d, 29
	FEATURE sha1msg1 xmm0, xmm1
	bt	r15d, 22
	FEATURE rdpid rax
	; VEX with vectors needs OSXSAVE, whatever the feature bits say; BMI's does not.
	FAULT	EXC_UD, 0, vpxor xmm0, xmm0, xmm0
	bt	r12d, 26
	jnc	.no_xsave
	SET_CR	cr4, CR4_OSXSAVE
	LEAF	1
	CHECK_BITS ecx, 1 << 27, 1 << 27
	bt	r14d, 3
	FEATURE andn eax, ebx, ecx
	bt	r14d, 8
	FEATURE mulx eax, ebx, ecx
	CLEAR_CR cr4, CR4_OSXSAVE
.no_xsave:
	LEAF	0x80000001
	mov	r15d, ecx
	bt	r15d, 5
	jnc	.no_lzcnt
	mov	eax, 1
	lzcnt	ebx, eax
	CHECK	rbx, 31
.no_lzcnt:
	bt	r14d, 3
	jnc	.no_tzcnt
	mov	eax, 8
	tzcnt	ebx, eax
	CHECK	rbx, 3
.no_tzcnt:
	; XSAVE's sizes: leaf 0Dh.
	LEAF	13
	cmp	ebx, ecx
	HOLDS	be, "size of now is at most the largest"
	bt	eax, 2
	jnc	.no_avx
	LEAF	13, 2
	CHECK	rax, 256
	CHECK	rbx, 576
.no_avx:
	; The hypervisor's leaves.
	LEAF	0x40000000
	cmp	eax, 0x40000000
	HOLDS	ae, "hypervisor leaf"
	; Brand string: printable, ends with a zero.
	mov	edi, brand
	mov	esi, 0x80000002
.brand:
	mov	eax, esi
	cpuid
	mov	[rdi], eax
	mov	[rdi + 4], ebx
	mov	[rdi + 8], ecx
	mov	[rdi + 12], edx
	add	edi, 16
	inc	esi
	cmp	esi, 0x80000004
	jbe	.brand
	mov	esi, brand
	mov	byte [brand + 48], 0
.character:
	lodsb
	test	al, al
	jz	.brand_end
	cmp	al, ' '
	HOLDS	ae, "brand string"
	cmp	al, 0x7f
	HOLDS	b, "brand string"
	jmp	.character
.brand_end:
	; The initial APIC ID.
	LEAF	1
	shr	ebx, 24
	LAPIC_READ eax, 0x20
	shr	eax, 24
	CHECK	rbx, rax
	; CPL 3 may ask, too.
	xor	eax, eax
	USER_WORKS cpuid
	ret

section .data
	align	16
number:	dq 1
highest: dd 0
brand:	times 64 db 0
