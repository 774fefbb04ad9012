/*
 * Runs a command in a user namespace of its own, in which a directory is a BPF file system that delegates everything,
 * as a BPF token needs it. The command is root there and has no capability outside.
 *
 *     delegated DIRECTORY COMMAND [ARGUMENT...]
 *     delegated --try-token DIRECTORY    in there: what the kernel answers, as EDN
 *
 * Ends as the command does; with 125 when it did not come to that, and says why on stderr.
 *
 * The file system must belong to the namespace, so it is opened there; but only a process that is privileged outside
 * may set what it delegates. Hence two processes, and a socket between them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* The same on every processor that Linux runs on today; older headers lack them. */
enum { NR_MOVE_MOUNT = 429, NR_FSOPEN = 430, NR_FSCONFIG = 431, NR_FSMOUNT = 432 };
enum { SET_STRING = 1, CMD_CREATE = 6, F_EMPTY_PATH = 4 };

static void fail(const char *what)
{
	fprintf(stderr, "delegated: %s: %s\n", what, strerror(errno));
	exit(125);
}

/* One byte, and a descriptor unless it is -1. */
static void tell(int to, int fd)
{
	char byte = 0, control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec iov = {&byte, 1};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

	if (fd >= 0) {
		message.msg_control = control;
		message.msg_controllen = sizeof(control);
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &fd, sizeof(int));
	}
	if (sendmsg(to, &message, MSG_NOSIGNAL) != 1)
		fail("telling the other process");
}

/* The descriptor that came along, or -1. When the other process has failed it has said why. */
static int hear(int from)
{
	char byte, control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = {&byte, 1};
	struct msghdr message = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	struct cmsghdr *header;
	int fd = -1;

	if (recvmsg(from, &message, MSG_CMSG_CLOEXEC) != 1)
		exit(125);
	header = CMSG_FIRSTHDR(&message);
	if (header && header->cmsg_type == SCM_RIGHTS)
		memcpy(&fd, CMSG_DATA(header), sizeof(int));
	return fd;
}

/* Everybody is inside who they are outside, so that files belong to whom they did. */
static void map_ids(pid_t pid, const char *file)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "0 0 4294967295", 14) != 14)
		fail(path);
	close(fd);
}

static int outside(int inside, pid_t pid)
{
	static const char *options[] = {"delegate_cmds", "delegate_maps", "delegate_progs", "delegate_attachs"};
	int fs, status;

	hear(inside);
	map_ids(pid, "uid_map");
	map_ids(pid, "gid_map");
	tell(inside, -1);
	fs = hear(inside);
	for (size_t i = 0; i < sizeof(options) / sizeof(*options); i++)
		if (syscall(NR_FSCONFIG, fs, SET_STRING, options[i], "any", 0) < 0)
			fail(options[i]);
	if (syscall(NR_FSCONFIG, fs, CMD_CREATE, NULL, NULL, 0) < 0)
		fail("making the file system");
	close(fs);
	tell(inside, -1);
	close(inside);
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			fail("waiting for the command");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void inside(int outside, char **argv)
{
	int fs, mount;

	if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0)
		fail("making a user namespace");
	tell(outside, -1);
	hear(outside);
	fs = syscall(NR_FSOPEN, "bpf", 1 /* close on exec */);
	if (fs < 0)
		fail("opening a BPF file system");
	tell(outside, fs);
	hear(outside);
	mount = syscall(NR_FSMOUNT, fs, 1 /* close on exec */, 0);
	if (mount < 0 || syscall(NR_MOVE_MOUNT, mount, "", AT_FDCWD, argv[0], F_EMPTY_PATH) < 0)
		fail(argv[0]);
	close(fs);
	close(mount);
	prctl(PR_SET_PDEATHSIG, SIGKILL); /* who ends the process outside ends the command */
	close(outside);
	execvp(argv[1], argv + 1);
	fail(argv[1]);
}

/* --- the token itself, with attributes as words: the headers here may be older than it */

static int bpf(int command, uint32_t *attr, size_t size)
{
	int result = syscall(SYS_bpf, command, attr, size);

	return result < 0 ? -errno : result;
}

/* An LRU hash map, because unprivileged processes may never make one. */
static int create_map(int token)
{
	uint32_t attr[20] = {BPF_MAP_TYPE_LRU_HASH, 4, 4, 1};

	if (token >= 0) {
		attr[4] = 1 << 16; /* map_flags: BPF_F_TOKEN_FD */
		attr[19] = token;  /* map_token_fd */
	}
	return bpf(BPF_MAP_CREATE, attr, sizeof(attr));
}

static int try_token(const char *directory)
{
	int fs = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	uint32_t attr[2] = {0, fs};
	int without = create_map(-1);
	int token = bpf(36 /* BPF_TOKEN_CREATE */, attr, sizeof(attr));
	int with = token < 0 ? token : create_map(token);

	/* Zero, or a negated errno. */
	printf("{:uid %d :without %d :token %d :with %d}\n", (int)geteuid(),
	       without < 0 ? without : 0, token < 0 ? token : 0, with < 0 ? with : 0);
	return 0;
}

int main(int argc, char **argv)
{
	int ends[2];
	pid_t pid;

	if (argc == 3 && !strcmp(argv[1], "--try-token"))
		return try_token(argv[2]);
	if (argc < 3) {
		fprintf(stderr, "usage: delegated DIRECTORY COMMAND [ARGUMENT...]\n");
		return 125;
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		fail("making a socket");
	pid = fork();
	if (pid < 0)
		fail("making a process");
	if (pid == 0) {
		close(ends[0]);
		inside(ends[1], argv + 1);
	}
	close(ends[1]);
	return outside(ends[0], pid);
}
