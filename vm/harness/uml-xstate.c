/*
 * Preloaded into User-mode Linux on processors whose extended state is larger than UML
 * knows (2696 bytes; with AMX it is 11008).
 *
 * UML keeps its processes' registers with PTRACE_GETREGSET and PTRACE_SETREGSET. The first
 * cuts the state to the caller's buffer, the second refuses one that is not whole (EFAULT,
 * xstateregs_set() in arch/x86/kernel/fpu/regset.c), and UML panics: "ptrace set fp regs
 * failed, errno = 14". So what UML gives is filled up with zeros here. What lies beyond,
 * AMX's tiles, no process of the guest can have used: that takes a permission (arch_prctl(2),
 * ARCH_REQ_XCOMP_PERM) which UML does not pass on.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* Not on the stack: UML's kernel stacks are small. UML has one processor. */
static char state[1 << 16];
static size_t whole;

static long set_xstate(pid_t pid, const struct iovec *part)
{
	struct iovec all = { .iov_base = state, .iov_len = sizeof(state) };

	if (whole == 0) {
		if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, NT_X86_XSTATE, &all) < 0)
			return -1;
		whole = all.iov_len;
		memset(state, 0, sizeof(state));
	}
	if (part->iov_len >= whole)
		return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, part);
	memcpy(state, part->iov_base, part->iov_len);
	all.iov_len = whole;
	return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, &all);
}

/* In place of the C library's. */
long ptrace(enum __ptrace_request request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	pid_t pid = va_arg(arguments, pid_t);
	void *address = va_arg(arguments, void *);
	void *data = va_arg(arguments, void *);
	va_end(arguments);

	if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE)
		return set_xstate(pid, data);
	/* The kernel answers PEEK requests through its fourth argument (ptrace(2)). */
	if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
		long word;
		long result = syscall(SYS_ptrace, request, pid, address, &word);
		if (result < 0)
			return result;
		errno = 0;
		return word;
	}
	return syscall(SYS_ptrace, request, pid, address, data);
}
