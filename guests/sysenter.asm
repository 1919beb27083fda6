; SYSCALL and SYSRET, SYSENTER and SYSEXIT, from 64-bit and compatibility mode. Where vendors differ, CPUID says what
; to expect (APM 3 SYSCALL, SYSRET, SYSENTER; SDM 2B).
%define GUEST "sysenter"
%define GUEST_BITS 64
%include "guest.inc"

guest_main:
	xor	eax, eax
	cpuid
	cmp	ebx, "Auth"
	sete	[amd]
	call	syscall64
	call	sysret64
	call	refused
	call	syscall32
	call	sysenter64
	ret

; With EFER.SCE and the MSRs set.
syscall64:
	FAULT	EXC_UD, 0, syscall
	FAULT	EXC_UD, 0, o64 sysret
	RDMSR_	MSR_EFER
	or	eax, EFER_SCE
	wrmsr
	; SYSCALL: CS = 08h, SS = 10h. SYSRET: 32-bit CS = 18h, SS = 20h, 64-bit CS = 28h.
	WRMSR_	MSR_STAR, 0, (0x18 << 16) | 0x08
	WRMSR_	MSR_LSTAR, .entry
	WRMSR_	MSR_CSTAR, .entry
	WRMSR_	MSR_SFMASK, CF | DF | IF | TF
	mov	rbx, 0xb0b
	USER	.user, 2 | IF | CF | ZF
	CAUGHT	EXC_BP, 0, .entry_end
	CHECK	[caught_cs], SEL_CODE
	CHECK	[caught_ss], SEL_DATA
	CHECK	[caught_xsp], user_stack_top	; the stack is the caller's
	CHECK	rcx, .user_end
	CHECK_BITS r11d, IF | CF | ZF | DF | RF, IF | CF | ZF | DF
	CHECK_BITS [caught_flags], IF | CF | ZF | DF | RF, ZF
	CHECK	rbx, 0xb0b
	; From CPL 0 as well.
	CATCH	.kernel
	syscall
.kernel_end:
.kernel:
	CAUGHT	EXC_BP, 0, .entry_end
	CHECK	rcx, .kernel_end
	ret
.user:	std
	syscall
.user_end:
	ud2
.entry:	int3
.entry_end:

sysret64:
	; To 64-bit code: RFLAGS from R11 with RF and VM cleared, selectors fixed, RSP stays.
	mov	rcx, .user
	mov	r11, IF | CF | RF | VM | ID | 2
	CATCH	.back
	mov	rbx, rsp
	mov	rsp, user_stack_top - 0x40
	o64	sysret
.back:
	CAUGHT	EXC_UD, 0, .user
	CHECK	[caught_cs], SEL_USER_CODE64
	CHECK	[caught_ss], SEL_USER_DATA
	CHECK	[caught_xsp], user_stack_top - 0x40
	CHECK_BITS [caught_flags], IF | CF | VM | ID, IF | CF | ID
	CHECK	rsp, rbx
	; To compatibility mode.
	mov	rcx, .user32
	mov	r11, 2 | ZF
	CATCH	.back32
	mov	rsp, user_stack_top - 0x40
	o32	sysret
.back32:
	CAUGHT	EXC_UD, 0, .user32_end
	CHECK	[caught_cs], SEL_USER_CODE32
	CHECK	[caught_ss], SEL_USER_DATA
	CHECK	rsp, rbx
	; The selectors' RPL is forced to 3, and the descriptors are not looked at.
	WRMSR_	MSR_STAR, 0, (0x18 << 16) | 0x08
	SET_DESCRIPTOR 0x20, 0, 0, 0
	mov	rcx, .user_stack
	mov	r11, 2
	CATCH	.flat
	mov	rsp, user_stack_top
	o64	sysret
.flat:
	CAUGHT	EXC_UD, 0, .user_stack_end
	SET_DESCRIPTOR 0x20, 0, 0xfffff, 0xc0f3
	; A round trip.
	WRMSR_	MSR_LSTAR, .service
	mov	eax, 20
	USER	.caller
	CAUGHT	EXC_UD, 0, .caller_end
	CHECK	rax, 22
	CHECK	[caught_xsp], user_stack_top
	WRMSR_	MSR_LSTAR, syscall64.entry
	; RCX that is not canonical: #GP, at CPL 0 on Intel, at CPL 3 (by the fetch) on AMD.
	mov	rcx, 0x800000000000
	mov	r11, 2
	CATCH	.canonical
	mov	rsp, user_stack_top
.sysret: o64	sysret
.canonical:
	CATCH_END
	CHECK	[caught_vector], EXC_GP
	cmp	byte [amd], 0
	je	.intel
	mov	rax, 0x800000000000
	CHECK	[caught_ip], rax
	CHECK	[caught_cs], SEL_USER_CODE64
	ret
.intel:
	CHECK	[caught_ip], .sysret
	CHECK	[caught_cs], SEL_CODE
	ret
.user:	ud2
.user_stack:
	push	rax
	pop	rax
.user_stack_end:
	ud2
.caller:
	syscall
	syscall
.caller_end:
	ud2
.service:
	inc	eax
	o64	sysret
bits 32
.user32:
	push	eax
	pop	eax
.user32_end:
	ud2
bits 64

refused:
	mov	rcx, sysret64.user
	USER_FAULT EXC_GP, 0, o64 sysret
	; The MSRs take canonical addresses only.
	mov	ecx, MSR_LSTAR
	xor	eax, eax
	mov	edx, 0x8000
	FAULT	EXC_GP, 0, wrmsr
	mov	ecx, MSR_CSTAR
	FAULT	EXC_GP, 0, wrmsr
	mov	ecx, MSR_SYSENTER_EIP
	FAULT	EXC_GP, 0, wrmsr
	mov	ecx, MSR_SYSENTER_ESP
	FAULT	EXC_GP, 0, wrmsr
	ret

; In compatibility mode SYSCALL is AMD's.
syscall32:
	USER32	.user
	cmp	byte [amd], 0
	jne	.amd
	CAUGHT	EXC_UD, 0, .user
	ret
.amd:
	CAUGHT	EXC_BP, 0, syscall64.entry_end
	CHECK	[caught_cs], SEL_CODE		; 64-bit mode, by CSTAR
	CHECK	rcx, .user_end
	ret
bits 32
.user:	syscall
.user_end:
	ud2
bits 64

; In long mode SYSENTER is Intel's; AMD raises #UD.
sysenter64:
	WRMSR_	MSR_SYSENTER_CS, SEL_CODE
	WRMSR_	MSR_SYSENTER_EIP, .entry
	WRMSR_	MSR_SYSENTER_ESP, stack0_top - 0x80
	cmp	byte [amd], 0
	je	.intel
	USER_FAULT EXC_UD, 0, sysenter
	USER32	.user32
	CAUGHT	EXC_UD, 0, .user32
	FAULT	EXC_UD, 0, sysexit
	ret
.intel:
	USER_FAULT EXC_GP, 0, sysexit
	USER	.user, 2 | IF | CF
	CAUGHT	EXC_BP, 0, .entry_end
	CHECK	[caught_cs], SEL_CODE
	CHECK	[caught_ss], SEL_DATA
	CHECK	[caught_xsp], stack0_top - 0x80
	CHECK_BITS [caught_flags], IF | CF | VM, CF
	USER32	.user32
	CAUGHT	EXC_BP, 0, .entry_end
	CHECK	[caught_cs], SEL_CODE
	; SYSEXIT: 32-bit CS + 16, SS + 24; 64-bit CS + 32, SS + 40.
	mov	rcx, user_stack_top - 0x20
	mov	rdx, .target
	CATCH	.back32
	sysexit
.back32:
	CAUGHT	EXC_UD, 0, .target
	CHECK	[caught_cs], SEL_CODE + 16 | 3
	CHECK	[caught_ss], SEL_CODE + 24 | 3
	CHECK	[caught_xsp], user_stack_top - 0x20
	CATCH	.back64
	o64	sysexit
.back64:
	CAUGHT	EXC_UD, 0, .target
	CHECK	[caught_cs], SEL_CODE + 32 | 3
	CHECK	[caught_ss], SEL_CODE + 40 | 3
	mov	rdx, 0x800000000000
	FAULT	EXC_GP, 0, o64 sysexit
	mov	rdx, .target
	mov	rcx, 0x800000000000
	FAULT	EXC_GP, 0, o64 sysexit
	; A null selector in the MSR.
	WRMSR_	MSR_SYSENTER_CS, 0
	USER_FAULT EXC_GP, 0, sysenter
	mov	rcx, user_stack_top
	mov	rdx, .target
	FAULT	EXC_GP, 0, sysexit
	ret
.user:	sysenter
.target:
	ud2
.entry:	int3
.entry_end:
bits 32
.user32:
	sysenter
	ud2
bits 64

section .data
amd:	db 0
