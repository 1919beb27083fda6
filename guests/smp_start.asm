; Starting processors: state after SIPI, APIC IDs, INIT of a running one, SIPI of one that runs, IPIs between all, by
; all destinations.
%define GUEST "smp_start"
%define GUEST_BITS 64
%define GUEST_CPUS 4
%include "guest.inc"
%include "smp.inc"

guest_main:
	HOOK	0x63, just_eoi
	call	smp_start
	; All have different APIC IDs.
	xor	ebx, ebx
	xor	ecx, ecx
.ids:
	mov	eax, [cpu_apic_id + rcx * 4]
	bts	ebx, eax
	HOLDS	nc, "APIC IDs differ"
	inc	ecx
	cmp	ecx, GUEST_CPUS
	jb	.ids
	RDMSR_	MSR_APIC_BASE
	CHECK_BITS eax, 0x100, 0x100		; the bootstrap processor
	ON_ALL	ap_state
	xor	ecx, ecx
.states:
	cmp	ecx, 0
	je	.bsp
	CHECK_BITS [seen_base + rcx * 4], 0x900, 0x800
	CHECK_BITS [seen_efer + rcx * 4], EFER_LME | EFER_LMA, EFER_LME | EFER_LMA
	mov	eax, [cpu_apic_id + rcx * 4]
	CHECK32	[seen_cpuid + rcx * 4], eax
.bsp:	inc	ecx
	cmp	ecx, GUEST_CPUS
	jb	.states
	call	ipis
	call	everybody
	call	lowest
	call	nmi
	call	init_again
	ret

ap_state:
	push	rbx
	RDMSR_	MSR_APIC_BASE
	mov	[seen_base + rdi * 4], eax
	RDMSR_	MSR_EFER
	mov	[seen_efer + rdi * 4], eax
	mov	eax, 1
	cpuid
	shr	ebx, 24
	mov	[seen_cpuid + rdi * 4], ebx
	pop	rbx
	ret

; SEND destination APIC ID (32-bit register), command
%macro SEND 2
	push	rax
	mov	eax, %1
	shl	eax, 24
	LAPIC_WRITE 0x310, eax
	LAPIC_WRITE 0x300, %2
	pop	rax
%endmacro

; Each processor is sent its own vector, physically and logically.
ipis:
	call	open_all
	mov	ebx, 1
.next:
	mov	dword [who], -1
	mov	eax, [cpu_apic_id + rbx * 4]
	SEND	eax, 0x4060
	WAIT_UNTIL e, cmp [who], ebx
	inc	ebx
	cmp	ebx, GUEST_CPUS
	jb	.next
	; Logical, flat: processor n has bit n.
	mov	ebx, 1
.logical:
	mov	dword [who], -1
	mov	ecx, ebx
	mov	eax, 1
	shl	eax, cl
	SEND	eax, 0x4860
	WAIT_UNTIL e, cmp [who], ebx
	inc	ebx
	cmp	ebx, GUEST_CPUS
	jb	.logical
	; From a processor to the first one.
	call	close_all
	HOOK	0x61, irq_apic
	call	irq_forget
	sti
	ON_CPU	2, .send_back
	WAIT_UNTIL e, cmp dword [IRQ_COUNT(0x61)], 1
	cli
	call	smp_wait
	; There and back, many times.
	HOOK	0x62, .pong
	HOOK	0x61, irq_apic
	call	open_all
	sti
	call	irq_forget
	mov	ebp, 200
.ping:
	mov	ebx, [IRQ_COUNT(0x61)]
	mov	eax, [cpu_apic_id + 4]
	SEND	eax, 0x4062
	inc	ebx
	WAIT_UNTIL e, cmp [IRQ_COUNT(0x61)], ebx
	dec	ebp
	jnz	.ping
	cli
	CHECK32	[IRQ_COUNT(0x61)], 200
	call	close_all
	ret
.send_back:
	mov	eax, [cpu_apic_id]
	SEND	eax, 0x4061
	ret
.pong:	mov	eax, [cpu_apic_id]
	SEND	eax, 0x4061
	LAPIC_WRITE 0xb0, 0
	ret

; The others stand with interrupts on, until they are told.
open_all:
	mov	dword [stay], 1
	HOOK	0x60, note_who
	; Logical IDs: one bit each.
	mov	dword [opened], 0
	mov	ecx, 1
.next:
	ON_CPU	rcx, .stand
	inc	ecx
	cmp	ecx, GUEST_CPUS
	jb	.next
	WAIT_UNTIL e, cmp dword [opened], GUEST_CPUS - 1
	ret
.stand:
	mov	ecx, edi
	mov	eax, 0x01000000
	shl	eax, cl
	LAPIC_WRITE 0xd0, eax
	mov	eax, edi
	WRMSR_	MSR_TSC_AUX, edi
	lock inc dword [opened]
	sti
.standing:
	hlt
	cmp	dword [stay], 0
	jne	.standing
	cli
	ret

close_all:
	; One that looks at `stay` right before its HLT would sleep on: so they are woken until all have gone.
	push	rcx
	push	rdi
	mov	dword [stay], 0
	mfence
	mov	ecx, 600000
.wake:
	LAPIC_WRITE 0x300, 0x000c4063
	call	delay_100us
	mov	edi, 1
.look:
	cmp	qword [cpu_work + rdi * 8], 0
	jne	.somebody
	inc	edi
	cmp	edi, GUEST_CPUS
	jb	.look
	jmp	.gone
.somebody:
	loop	.wake
	FAILED	"processors did not leave HLT"
.gone:
	pop	rdi
	pop	rcx
	ret
just_eoi:
	LAPIC_WRITE 0xb0, 0
	ret
note_who:
	push	rdi
	LAPIC_READ eax, 0x20
	shr	eax, 24
	xor	edi, edi
.find:	cmp	[cpu_apic_id + rdi * 4], eax
	je	.found
	inc	edi
	cmp	edi, GUEST_CPUS
	jb	.find
.found:	mov	[who], edi
	lock inc dword [hits + rdi * 4]
	lock inc dword [total]
	pop	rdi
	LAPIC_WRITE 0xb0, 0
	ret

; Shorthands and broadcast.
everybody:
	call	open_all
	mov	dword [total], 0
	LAPIC_WRITE 0x300, 0x000c4060		; all but itself
	WAIT_UNTIL e, cmp dword [total], GUEST_CPUS - 1
	mov	ecx, 10
	call	delay_ms
	CHECK32	[total], GUEST_CPUS - 1
	mov	dword [total], 0
	sti
	LAPIC_WRITE 0x300, 0x00084060		; all
	WAIT_UNTIL e, cmp dword [total], GUEST_CPUS
	mov	dword [total], 0
	mov	eax, 0xff
	SEND	eax, 0x4060			; physical broadcast
	WAIT_UNTIL e, cmp dword [total], GUEST_CPUS
	mov	dword [total], 0
	mov	eax, 6				; logical: processors 1 and 2
	SEND	eax, 0x4860
	WAIT_UNTIL e, cmp dword [total], 2
	mov	ecx, 10
	call	delay_ms
	CHECK32	[total], 2
	cli
	call	close_all
	ret

; Lowest priority to a set: exactly one takes each.
lowest:
	call	open_all
	mov	dword [total], 0
	mov	ebp, 50
.next:
	mov	ebx, [total]
	inc	ebx
	mov	eax, 0x0e
	SEND	eax, 0x4960
	WAIT_UNTIL e, cmp [total], ebx
	dec	ebp
	jnz	.next
	mov	ecx, 10
	call	delay_ms
	CHECK32	[total], 50
	call	close_all
	ret

nmi:
	HOOK	EXC_NMI, .note
	call	open_all
	mov	dword [total], 0
	LAPIC_WRITE 0x300, 0x000c4400
	WAIT_UNTIL e, cmp dword [total], GUEST_CPUS - 1
	call	close_all
	HOOK	EXC_NMI, 0
	ret
.note:	lock inc dword [total]
	ret

; SIPI to a running processor does nothing; INIT stops it, SIPI starts it anew.
init_again:
	mov	dword [smp_next], 3		; it will be number 3 again
	mov	ebx, [cpu_apic_id + 12]
	mov	dword [total], 0
	ON_CPU	3, .count
	WAIT_UNTIL a, cmp dword [total], 1000
	SEND	ebx, 0x4600 | ap_start_page
	mov	ecx, 5
	call	delay_ms
	mov	eax, [total]
	WAIT_UNTIL a, cmp [total], eax		; it still runs
	CHECK32	[cpu_online], GUEST_CPUS - 1
	SEND	ebx, 0x4500
	mov	ebp, 3000
.until_it_stands:
	mov	eax, [total]
	mov	ecx, 20
	call	delay_ms
	cmp	eax, [total]
	je	.stands
	dec	ebp
	jnz	.until_it_stands
.stands:
	test	ebp, ebp
	HOLDS	nz, "INIT stops a processor"
	mov	qword [cpu_work + 24], 0
	mov	dword [cpu_online], GUEST_CPUS - 2
	SEND	ebx, 0x4600 | ap_start_page
	WAIT_UNTIL e, cmp dword [cpu_online], GUEST_CPUS - 1
	mov	dword [total], 0
	ON_CPU	3, .once
	call	smp_wait
	CHECK32	[total], 1
	ret
.count:	inc	dword [total]
	jmp	.count
.once:	inc	dword [total]
	ret

section .data
	align	64
who:	dd 0
	align	64
total:	dd 0
stay:	dd 0
opened:	dd 0
hits:	times CPUS_MAX dd 0
seen_base: times CPUS_MAX dd 0
seen_efer: times CPUS_MAX dd 0
seen_cpuid: times CPUS_MAX dd 0
