; The ACPI timer, found by the tables: RSDP, XSDT or RSDT, checksums, FADT, MADT, DSDT; the timer against the 8254;
; PM1 registers.
%define GUEST "pm_timer"
%define GUEST_BITS 64
%include "guest.inc"

guest_main:
	call	find_rsdp
	test	esi, esi
	HOLDS	nz, "RSDP"
	test	esi, esi
	jz	.end
	call	tables
	cmp	dword [fadt], 0
	HOLDS	ne, "FADT"
	cmp	dword [madt], 0
	HOLDS	ne, "MADT"
	cmp	dword [fadt], 0
	je	.end
	call	timer
	call	power_management
.end:
	ret

; In the BIOS area, on 16 bytes.
find_rsdp:
	mov	esi, 0xe0000
	mov	rax, "RSD PTR "
.next:
	cmp	[rsi], rax
	je	.found
	add	esi, 16
	cmp	esi, 0x100000
	jb	.next
	xor	esi, esi
	ret
.found:
	mov	ecx, 20
	call	sum
	CHECK	rax, 0
	ret

; The sum of ECX bytes at RSI, in EAX (8 bits).
sum:
	push	rsi
	xor	eax, eax
.next:
	add	al, [rsi]
	inc	rsi
	loop	.next
	pop	rsi
	ret

tables:
	cmp	byte [rsi + 15], 2
	jb	.rsdt
	mov	ecx, [rsi + 20]
	CHECK	rcx, 36
	call	sum
	CHECK	rax, 0
	mov	rsi, [rsi + 24]
	CHECK32	[rsi], "XSDT"
	mov	ebp, 8
	jmp	.list
.rsdt:
	mov	esi, [rsi + 16]
	CHECK32	[rsi], "RSDT"
	mov	ebp, 4
.list:
	mov	ecx, [rsi + 4]
	mov	edx, ecx
	call	sum
	CHECK	rax, 0
	lea	rbx, [rsi + 36]
	add	rdx, rsi
.entry:
	cmp	rbx, rdx
	jae	.done
	mov	edi, [rbx]			; all below 4 GiB
	mov	esi, edi
	mov	ecx, [rsi + 4]
	call	sum
	CHECK	rax, 0
	mov	eax, [rdi]
	cmp	eax, "FACP"
	jne	.no_fadt
	mov	[fadt], edi
.no_fadt:
	cmp	eax, "APIC"
	jne	.no_madt
	mov	[madt], edi
.no_madt:
	add	rbx, rbp
	jmp	.entry
.done:
	; MADT: the local APIC's address, one processor at least, one I/O APIC.
	mov	edi, [madt]
	test	edi, edi
	jz	.end
	CHECK32	[rdi + 36], LAPIC
	mov	edx, [rdi + 4]
	add	rdx, rdi
	lea	rbx, [rdi + 44]
	xor	r12d, r12d
	xor	r13d, r13d
.record:
	cmp	rbx, rdx
	jae	.counted
	cmp	byte [rbx], 0
	jne	.no_cpu
	test	byte [rbx + 4], 1
	jz	.no_cpu
	inc	r12d
.no_cpu:
	cmp	byte [rbx], 1
	jne	.no_ioapic
	inc	r13d
	CHECK32	[rbx + 4], IOAPIC
	CHECK32	[rbx + 8], 0
.no_ioapic:
	movzx	eax, byte [rbx + 1]
	test	eax, eax
	jz	.counted
	add	rbx, rax
	jmp	.record
.counted:
	CHECK	r12, 1
	CHECK	r13, 1
	; DSDT and FACS.
	mov	edi, [fadt]
	test	edi, edi
	jz	.end
	mov	esi, [rdi + 40]
	CHECK32	[rsi], "DSDT"
	mov	ecx, [rsi + 4]
	call	sum
	CHECK	rax, 0
	mov	esi, [rdi + 36]
	test	esi, esi
	jz	.end
	CHECK32	[rsi], "FACS"
.end:
	ret

timer:
	mov	edi, [fadt]
	mov	eax, [rdi + 76]
	mov	[port], eax
	test	eax, eax
	HOLDS	nz, "PM_TMR_BLK"
	CHECK8	[rdi + 91], 4			; PM_TMR_LEN
	; 3.579545 MHz over 50 ms, once in several tries: the host may be away.
	mov	ebp, 300
.again:
	mov	edx, [port]
	in	eax, dx
	mov	ebx, eax
	mov	ecx, 50
	call	delay_ms
	in	eax, dx
	sub	eax, ebx
	and	eax, 0xffffff
	cmp	eax, 178000
	HOLDS	ae, "50 ms of the ACPI timer"
	cmp	eax, 178000 * 60
	jb	.right
	dec	ebp
	jnz	.again
.right:
	test	ebp, ebp
	HOLDS	nz, "50 ms of the ACPI timer"
	; It goes up, modulo 2^24 or 2^32 (but for two seconds that the host may be away).
	xor	ebp, ebp
	mov	ecx, 2000
	in	eax, dx
	mov	ebx, eax
.next:
	in	eax, dx
	mov	esi, eax
	sub	esi, ebx
	and	esi, 0xffffff
	cmp	esi, 0x800000
	jb	.up
	inc	ebp
.up:	mov	ebx, eax
	dec	ecx
	jnz	.next
	cmp	ebp, 10
	HOLDS	b, "the ACPI timer goes up"
	ret

power_management:
	mov	edi, [fadt]
	mov	edx, [rdi + 56]			; PM1a event block
	test	edx, edx
	HOLDS	nz, "PM1a_EVT_BLK"
	; Enables hold what is written; status bits are cleared by ones.
	add	edx, 2
	in	ax, dx
	mov	ebx, eax
	mov	eax, 0x0120
	out	dx, ax
	in	ax, dx
	CHECK_BITS eax, 0x0120, 0x0120
	mov	eax, ebx
	out	dx, ax
	sub	edx, 2
	mov	eax, 0xffff
	out	dx, ax
	in	ax, dx
	CHECK_BITS eax, 0x0520, 0
	mov	edx, [rdi + 64]			; PM1a control block
	in	ax, dx
	CHECK_BITS eax, 1, 1			; SCI_EN
	ret

section .data
fadt:	dd 0
madt:	dd 0
port:	dd 0
