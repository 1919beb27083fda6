; Virtual-8086 mode: entry and exit, IOPL, INT n, I/O permission, and the extensions of CR4.VME (SDM 3B chapter 20).
%define GUEST "vm86"
%define GUEST_BITS 32
%include "guest.inc"

; V86 address[, flags]: runs the 16-bit code there, with CS = 0, SS = 700h, SP = 1000h, up to the next exception.
V_SS	equ 0x700
V_SP	equ 0x1000
V_DS	equ 0x1234
V_ES	equ 0x2345
V_FS	equ 0x3456
V_GS	equ 0x4567
%macro V86 1-2 VM | 2
	CATCH	%%resume
	push	dword V_GS
	push	dword V_FS
	push	dword V_DS
	push	dword V_ES
	push	dword V_SS
	push	dword V_SP
	push	dword %2
	push	dword 0
	push	dword %1
	iretd
%%resume:
%endmacro

; V86_FAULT vector, error, flags, instruction
%define V86_FAULT V86_FAULT_ __?LINE?__,
%macro V86_FAULT_ 5+
	[section .real]
	bits 16
%%at:	%5
%%end:	ud2
	bits 32
	[section .text]
	V86	%%at, VM | 2 | (%4)
	CAUGHT_	%1, %2, %3, %%at
%endmacro
; V86_WORKS flags, instruction: and then UD2.
%define V86_WORKS V86_WORKS_ __?LINE?__,
%macro V86_WORKS_ 3+
	[section .real]
	bits 16
%%at:	%3
%%end:	ud2
	bits 32
	[section .text]
	V86	%%at, VM | 2 | (%2)
	CAUGHT_	%1, EXC_UD, 0, %%end
%endmacro

guest_main:
	mov	word [tss + 0x66], 0x68 + 32	; room for the redirection map in front of the I/O map
	mov	word [gdt + SEL_TSS], 0x68 + 32 + 8192
	mov	byte [gdt + SEL_TSS + 5], 0x89
	mov	eax, SEL_TSS
	ltr	ax
	mov	edi, tss + 0x68
	mov	ecx, 32 + 8192 + 1
	mov	al, 0xff
	rep	stosb
	call	entry
	call	iopl0
	call	iopl3
	call	addresses
	call	ports
	call	vme
	ret

entry:
	mov	eax, 0x11223344
	V86	plain
	CAUGHT	EXC_UD, 0, plain
	CHECK	eax, 0x11223344
	CHECK	[caught_cs], 0
	CHECK	[caught_ss], V_SS
	CHECK	[caught_xsp], V_SP
	CHECK	[caught_vm], V_ES
	CHECK	[caught_vm + 4], V_DS
	CHECK	[caught_vm + 8], V_FS
	CHECK	[caught_vm + 12], V_GS
	CHECK	[caught_frame], stack0_top - 36
	CHECK	[caught_handler_ss], SEL_DATA
	CHECK_BITS [caught_flags], VM | IF | IOPL3, VM
	; The handler's data segments are null.
	CHECK	[caught_ds], 0
	CHECK	[caught_es], 0
	CHECK	[caught_fs], 0
	CHECK	[caught_gs], 0
	mov	eax, SEL_DATA
	mov	es, eax
	; The handler must run at CPL 0: gates to other code refuse.
	SET_DESCRIPTOR SEL_FREE, 0, 0xfffff, 0xc09f	; conforming
	GATE	0x90, STUB(0x90), 0xee, SEL_FREE
	V86	int90, VM | IOPL3 | 2
	CAUGHT	EXC_GP, SEL_FREE, int90
	mov	eax, SEL_DATA
	mov	es, eax
	; To VM86 from CPL 0 only: elsewhere the bit in the image does nothing.
	USER	.user
	CAUGHT	EXC_UD, 0, .user_end
	CHECK_BITS [caught_flags], VM, 0
	; 16-bit IRET does not see VM.
	ret
.user:
	push	dword VM | 2
	push	dword SEL_USER_CODE32
	push	dword .user_end
	iretd
.user_end:
	ud2

%macro RESTORE 0
	mov	eax, SEL_DATA
	mov	es, eax
%endmacro

iopl0:
	V86_FAULT EXC_GP, 0, 0, cli
	V86_FAULT EXC_GP, 0, 0, sti
	V86_FAULT EXC_GP, 0, 0, pushf
	V86_FAULT EXC_GP, 0, 0, popf
	V86_FAULT EXC_GP, 0, 0, iret
	V86_FAULT EXC_GP, 0, 0, {int 0x90}
	V86_FAULT EXC_GP, 0, 0, {db 0xcd, 3}
	; INT3, INTO and INT1 do not ask for IOPL; INT3 and INTO for the gate's DPL.
	V86_FAULT EXC_GP, EXC_BP * 8 + 2, 0, int3
	GATE	EXC_BP, STUB(EXC_BP), 0xee
	V86	int3_code
	CAUGHT	EXC_BP, 0, int3_code + 1
	GATE	EXC_BP, STUB(EXC_BP)
	V86	int1_code
	CAUGHT	EXC_DB, 0, int1_code + 1
	V86_FAULT EXC_GP, 0, 0, hlt
	V86_FAULT EXC_GP, 0, 0, {mov eax, cr0}
	V86_FAULT EXC_GP, 0, 0, {mov cr0, eax}
	V86_FAULT EXC_GP, 0, 0, {mov dr7, eax}
	V86_FAULT EXC_GP, 0, 0, clts
	V86_FAULT EXC_GP, 0, 0, {lmsw ax}
	V86_FAULT EXC_GP, 0, 0, rdmsr
	V86_FAULT EXC_GP, 0, 0, wbinvd
	V86_FAULT EXC_GP, 0, 0, {lgdt [0]}
	V86_FAULT EXC_UD, 0, 0, {lldt ax}
	V86_FAULT EXC_UD, 0, 0, {str ax}
	V86_FAULT EXC_UD, 0, 0, {lar ax, ax}
	V86_FAULT EXC_UD, 0, 0, {arpl ax, ax}
	V86_WORKS 0, smsw ax
	V86_WORKS 0, sgdt [ss:0x800]
	RESTORE
	ret

iopl3:
	V86_WORKS IOPL3, cli
	CHECK_BITS [caught_flags], IF | IOPL3, IOPL3
	V86_WORKS IOPL3, sti
	CHECK_BITS [caught_flags], IF | IOPL3, IF | IOPL3
	V86_WORKS IOPL3, {pushf}
	CHECK	[caught_xsp], V_SP - 2
	V86	popf_code, VM | IOPL3 | 2
	CAUGHT	EXC_UD, 0, popf_end
	; POPF: IF, but neither IOPL nor VM.
	CHECK_BITS [caught_flags], IF | CF | NT | IOPL3 | VM, IF | CF | NT | IOPL3 | VM
	V86	iret_code, VM | IOPL3 | 2
	CAUGHT	EXC_UD, 0, iret_end
	CHECK_BITS [caught_flags], IF | CF | IOPL3 | VM, IF | CF | IOPL3 | VM
	V86	iretd_code, VM | IOPL3 | 2
	CAUGHT	EXC_UD, 0, iretd_end
	CHECK_BITS [caught_flags], IF | CF | IOPL3 | VM, CF | IOPL3 | VM
	; INT n through the IDT.
	GATE	0x90, STUB(0x90), 0xee
	V86	int90, VM | IOPL3 | 2
	CAUGHT	0x90, 0, int90 + 2
	CHECK_BITS [caught_flags], VM, VM
	GATE	0x90, STUB(0x90), 0x8e
	V86	int90, VM | IOPL3 | 2
	CAUGHT	EXC_GP, 0x90 * 8 + 2, int90
	V86_FAULT EXC_GP, 0, IOPL3, hlt
	RESTORE
	ret

addresses:
	mov	dword [0x12345], 0x77665544
	V86	load_code
	CAUGHT	EXC_UD, 0, load_end
	CHECK	eax, 0x77665544
	CHECK	ebx, 0x77665544
%ifndef ON_TCG
	V86_FAULT EXC_GP, 0, 0, {mov ax, [ds:0xffff]}
	mov	ebx, 0x10000
	V86_FAULT EXC_GP, 0, 0, {mov al, [ebx]}
	V86_FAULT EXC_SS, 0, 0, {mov al, [ss:ebx]}
%endif
	; Far jumps and calls as in real mode.
	V86	far_code
	CAUGHT	EXC_UD, 0, far_target - 0x8000
	CHECK	[caught_cs], 0x800
	CHECK	[caught_xsp], V_SP - 4
	; A page fault and a divide error come out like everything else.
	xor	ecx, ecx
	V86_FAULT EXC_DE, 0, 0, {div cl}
	RESTORE
	ret

; Ports need the I/O map, whatever IOPL says.
ports:
	V86_FAULT EXC_GP, 0, IOPL3, {in al, 0x80}
	V86_FAULT EXC_GP, 0, IOPL3, {out 0x80, al}
	mov	byte [tss + 0x68 + 32 + 0x80 / 8], 0xfc	; 80h and 81h
	V86_WORKS 0, {out 0x80, al}
	V86_WORKS 0, {out 0x80, ax}
	V86_FAULT EXC_GP, 0, 0, {out 0x80, eax}
	V86_FAULT EXC_GP, 0, 0, {out 0x81, ax}
	mov	byte [tss + 0x68 + 32 + 0x80 / 8], 0xff
	RESTORE
	ret

vme:
	mov	eax, 1
	cpuid
	test	edx, 2
	jnz	.have
	PRINT	GUEST, ": no VME", 10
	ret
.have:
	SET_CR	cr4, CR4_VME
	; IOPL below 3: VIF in IF's place.
	V86_WORKS VIF, cli
	CHECK_BITS [caught_flags], VIF | IF, 0
	V86_WORKS IF, sti
	CHECK_BITS [caught_flags], VIF | IF, VIF | IF
	V86_FAULT EXC_GP, 0, VIP, sti		; an interrupt waits
	V86_WORKS VIP, cli
	; PUSHF shows VIF as IF, and IOPL 3.
	V86	pushf_code, VM | VIF | CF | 2
	CAUGHT	EXC_UD, 0, pushf_end
	CHECK16	[V_SS * 16 + V_SP - 2], IF | IOPL3 | CF | 2
	V86	pushf_code, VM | IF | CF | 2
	CHECK16	[V_SS * 16 + V_SP - 2], IOPL3 | CF | 2
	V86_FAULT EXC_GP, 0, VIF, pushfd
	; POPF sets VIF by IF.
	V86	popf_code, VM | 2
	CAUGHT	EXC_UD, 0, popf_end
	CHECK_BITS [caught_flags], VIF | IF | CF | NT | IOPL3, VIF | CF | NT
	V86	popf_code, VM | VIP | 2
	CAUGHT	EXC_GP, 0, popf_code.at
	V86	popf_tf, VM | 2
	CAUGHT	EXC_GP, 0, popf_tf.at
	; IRET too.
	V86	iret_code, VM | 2
	CAUGHT	EXC_UD, 0, iret_end
	CHECK_BITS [caught_flags], VIF | IF | CF | IOPL3, VIF | CF
	V86_FAULT EXC_GP, 0, 0, iretd
	; INT n by the redirection map: a clear bit goes through the program's own table, at address 0.
	and	byte [tss + 0x68 + 0x90 / 8], ~1
	mov	word [0x90 * 4], redirected
	mov	word [0x90 * 4 + 2], 0
	V86	int90, VM | VIF | CF | 2
	CAUGHT	EXC_UD, 0, redirected
	CHECK	[caught_xsp], V_SP - 6
	CHECK16	[V_SS * 16 + V_SP - 6], int90 + 2
	CHECK16	[V_SS * 16 + V_SP - 4], 0
	CHECK16	[V_SS * 16 + V_SP - 2], CF | IF | IOPL3 | 2
	CHECK_BITS [caught_flags], VIF | IF | TF | CF, CF
	V86	int90, VM | IF | IOPL3 | CF | 2		; IOPL 3: the real IF
	CAUGHT	EXC_UD, 0, redirected
	CHECK16	[V_SS * 16 + V_SP - 2], CF | IF | IOPL3 | 2
	CHECK_BITS [caught_flags], VIF | IF | IOPL3 | CF, CF | IOPL3
	; A set bit: the IDT with IOPL 3, else #GP.
	or	byte [tss + 0x68 + 0x90 / 8], 1
	V86	int90, VM | 2
	CAUGHT	EXC_GP, 0, int90
	GATE	0x90, STUB(0x90), 0xee
	V86	int90, VM | IOPL3 | 2
	CAUGHT	0x90, 0, int90 + 2
	; A whole round trip in the program.
	and	byte [tss + 0x68 + 0x90 / 8], ~1
	mov	word [0x90 * 4], service
	V86	int90, VM | VIF | 2
	CAUGHT	EXC_UD, 0, int90 + 2
	CHECK	edx, 0x4321
	CHECK	[caught_xsp], V_SP
	CHECK_BITS [caught_flags], VIF, VIF
	CLEAR_CR cr4, CR4_VME
	RESTORE
	; VIP and VIF together at CPL 3, without VME, mean nothing; protected-mode virtual interrupts are CR4.PVI's.
	SET_CR	cr4, CR4_PVI
	USER	.user_cli, 2 | VIF
	CAUGHT	EXC_UD, 0, .user_cli + 1
	CHECK_BITS [caught_flags], VIF, 0
	USER	.user_sti, 2
	CAUGHT	EXC_UD, 0, .user_sti + 1
	CHECK_BITS [caught_flags], VIF | IF, VIF
	USER	.user_sti, 2 | VIP
	CAUGHT	EXC_GP, 0, .user_sti
	CLEAR_CR cr4, CR4_PVI
	USER	.user_sti, 2
	CAUGHT	EXC_GP, 0, .user_sti
	ret
.user_cli:
	cli
	ud2
.user_sti:
	sti
	ud2

section .real
bits 16
plain:
	ud2
int90:	int	0x90
	ud2
int3_code:
	int3
	ud2
int1_code:
	db	0xf1
	ud2
popf_code:
	push	word IF | CF | NT | 2
.at:	popf
popf_end:
	ud2
popf_tf:
	push	word TF | 2
.at:	popf
	ud2
pushf_code:
	pushf
pushf_end:
	ud2
iret_code:
	push	word IF | CF | 2
	push	word 0
	push	word iret_end
	iret
iret_end:
	ud2
iretd_code:
	push	dword CF | 2
	push	dword 0
	push	dword iretd_end
	iretd
iretd_end:
	ud2
load_code:
	mov	eax, [0x5]			; DS is 1234h
	mov	cx, 0x1000
	mov	es, cx
	mov	ebx, [es:0x2345]
load_end:
	ud2
far_code:
	call	0x800:far_target - 0x8000
far_target:
	ud2
redirected:
	ud2
service:
	mov	edx, 0x4321
	iret

section .text
