// Known workloads for the exactness tests: load MODE [ARGUMENTS]. A mode that holds prints "ready" and waits for a line.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static long long now(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void burn_us(long us)
{
	long long end = now(CLOCK_THREAD_CPUTIME_ID) + us * 1000LL;
	while (now(CLOCK_THREAD_CPUTIME_ID) < end)
		;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void hold(void)
{
	char line[8];
	printf("ready\n");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		exit(1);
}

static void *burner(void *us)
{
	burn_us((long)us);
	return NULL;
}

static void *forever(void *unused)
{
	for (;;)
		burn_us(10000);
	return unused;
}

static void *executor(void *unused)
{
	char *argv[] = {"load", "burn", "20000", NULL};
	(void)unused;
	burn_us(10000);
	execv("/proc/self/exe", argv);
	fail("execv");
	return NULL;
}

static void *napper(void *unused)
{
	(void)unused;
	pause();
	return NULL;
}

static void forks(int n, int us)
{
	for (int i = 0; i < n; i++) {
		pid_t child = fork();
		if (child < 0)
			fail("fork");
		if (!child) {
			burn_us(us);
			_exit(0);
		}
		waitpid(child, NULL, 0);
	}
}

static void spawns(int n)
{
	char *argv[] = {"true", NULL};
	for (int i = 0; i < n; i++) {
		pid_t child;
		if (posix_spawn(&child, "/bin/true", NULL, NULL, argv, environ))
			fail("posix_spawn");
		waitpid(child, NULL, 0);
	}
}

static void threads(int n, int us)
{
	pthread_t thread[4];
	for (int i = 0; i < n; i++) {
		for (int k = 0; k < 4; k++)
			if (pthread_create(&thread[k], NULL, burner, (void *)(long)us))
				fail("pthread_create");
		for (int k = 0; k < 4; k++)
			pthread_join(thread[k], NULL);
	}
}

static void vforks(int n)
{
	for (int i = 0; i < n; i++) {
		pid_t child = vfork();
		if (child < 0)
			fail("vfork");
		if (!child)
			_exit(0);
		waitpid(child, NULL, 0);
	}
}

// W workers that mix all of these.
static void storm(int workers, int rounds)
{
	for (int w = 0; w < workers; w++)
		if (!fork()) {
			for (int i = 0; i < rounds; i++) {
				forks(2, 100 + 37 * w);
				spawns(1);
				threads(1, 50);
				vforks(2);
			}
			_exit(0);
		}
	while (wait(NULL) > 0)
		;
}

static void file_io(long mib, const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	char *block = calloc(1, 1 << 20);
	if (fd < 0 || !block)
		fail(path);
	for (long i = 0; i < mib; i++)
		if (write(fd, block, 1 << 20) != 1 << 20)
			fail("write");
	fsync(fd);
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	lseek(fd, 0, SEEK_SET);
	while (read(fd, block, 1 << 20) > 0)
		;
	close(fd);
	unlink(path);
}

static void print_file(const char *path)
{
	char text[4096];
	int fd = open(path, O_RDONLY);
	ssize_t n = read(fd, text, sizeof(text));
	if (n > 0)
		fwrite(text, 1, n, stdout);
	fflush(stdout);
	close(fd);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	long a = argc > 2 ? strtol(argv[2], NULL, 0) : 0, b = argc > 3 ? strtol(argv[3], NULL, 0) : 0;
	pthread_t thread[16];

	if (!strcmp(mode, "burn")) {
		burn_us(a);
	} else if (!strcmp(mode, "forks")) {
		forks(a, b);
	} else if (!strcmp(mode, "spawns")) {
		spawns(a);
	} else if (!strcmp(mode, "threads")) {
		threads(a, b);
	} else if (!strcmp(mode, "vforks")) {
		vforks(a);
	} else if (!strcmp(mode, "storm")) {
		storm(a, b);
	} else if (!strcmp(mode, "leader-first")) { // the leader ends, three threads go on for A us each
		for (int i = 0; i < 3; i++)
			pthread_create(&thread[i], NULL, burner, (void *)a);
		burn_us(1000);
		pthread_exit(NULL);
	} else if (!strcmp(mode, "exec-by-thread")) { // threads burn while one that is not the leader execs
		for (int i = 0; i < 3; i++)
			pthread_create(&thread[i], NULL, forever, NULL);
		pthread_create(&thread[3], NULL, executor, NULL);
		forever(NULL);
	} else if (!strcmp(mode, "zombies")) { // A children burn B us, end, and are not reaped while this holds
		pid_t child[256];
		siginfo_t info;
		for (int i = 0; i < a; i++)
			if (!(child[i] = fork())) {
				burn_us(b);
				_exit(0);
			}
		for (int i = 0; i < a; i++) // all have ended, none is reaped
			waitid(P_PID, child[i], &info, WEXITED | WNOWAIT);
		hold();
		while (wait(NULL) > 0)
			;
	} else if (!strcmp(mode, "phases")) { // burn A us, hold, burn A us, hold
		for (int i = 0; i < 2; i++) {
			burn_us(a);
			hold();
		}
	} else if (!strcmp(mode, "hold-threads")) { // A threads burn B us between two holds
		for (int i = 0; i < 2; i++) {
			for (int k = 1; k < a; k++)
				pthread_create(&thread[k], NULL, burner, (void *)b);
			burn_us(b);
			for (int k = 1; k < a; k++)
				pthread_join(thread[k], NULL);
			hold();
		}
	} else if (!strcmp(mode, "move-threads")) { // A threads burn for ever until a line comes
		for (int k = 1; k < a; k++)
			pthread_create(&thread[k], NULL, forever, NULL);
		hold();
		_exit(0);
	} else if (!strcmp(mode, "unshare-between")) { // burn A us, unshare flags B, burn 2A us; prints CPU ns of both legs
		burn_us(a);
		long long first = now(CLOCK_THREAD_CPUTIME_ID);
		if (unshare(b))
			fail("unshare");
		burn_us(2 * a);
		printf("%lld %lld\n", first, now(CLOCK_THREAD_CPUTIME_ID) - first);
		fflush(stdout);
		hold();
	} else if (!strcmp(mode, "setns-back")) { // unshare uts, burn A, back into the old one, burn 2A
		int old = open("/proc/self/ns/uts", O_RDONLY);
		if (unshare(CLONE_NEWUTS))
			fail("unshare");
		hold();
		burn_us(a);
		if (setns(old, CLONE_NEWUTS))
			fail("setns");
		burn_us(2 * a);
		hold();
	} else if (!strcmp(mode, "unshares")) { // A calls of unshare(CLONE_NEWUTS)
		hold();
		for (long i = 0; i < a; i++)
			if (unshare(CLONE_NEWUTS))
				fail("unshare");
		hold();
	} else if (!strcmp(mode, "unshares-used")) { // A calls of unshare(CLONE_NEWUTS), and one of read in each namespace
		char byte;
		int zero = open("/dev/zero", O_RDONLY);
		hold();
		for (long i = 0; i < a; i++)
			if (unshare(CLONE_NEWUTS) || read(zero, &byte, 1) != 1)
				fail("unshare");
		hold();
	} else if (!strcmp(mode, "unseen")) { // unshare(CLONE_NEWUTS) as a 32-bit program calls it
#ifdef __x86_64__
		long result;
		hold();
		asm volatile("int $0x80" : "=a"(result) : "a"(310L), "b"((long)CLONE_NEWUTS) : "memory", "r8", "r9", "r10", "r11");
		if (result)
			return 3;
		hold();
#else
		return 3;
#endif
	} else if (!strcmp(mode, "bad-setns")) { // A calls of setns on a descriptor that is none
		hold();
		for (long i = 0; i < a; i++)
			setns(999, CLONE_NEWUTS);
		hold();
	} else if (!strcmp(mode, "calls")) { // A each of fork, vfork, clone by raw number
		hold();
		for (long i = 0; i < a; i++) {
#ifdef SYS_fork
			if (!syscall(SYS_fork))
				_exit(0);
			wait(NULL);
#endif
			if (!vfork())
				_exit(0);
			wait(NULL);
			if (!syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0))
				_exit(0);
			wait(NULL);
		}
		hold();
	} else if (!strcmp(mode, "memory")) { // touch A MiB, with B more threads
		char *block = mmap(NULL, a << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		memset(block, 1, a << 20);
		for (int i = 0; i < b; i++)
			pthread_create(&thread[i], NULL, napper, NULL);
		hold();
	} else if (!strcmp(mode, "io")) { // write and read A MiB at the path, print /proc/self/io
		file_io(a, argv[3]);
		print_file("/proc/self/io");
		hold();
	} else if (!strcmp(mode, "sleepers")) { // A processes that do nothing
		for (long i = 0; i < a; i++)
			if (!fork()) {
				for (;;)
					pause();
			}
		hold();
		signal(SIGTERM, SIG_IGN);
		kill(0, SIGTERM);
		while (wait(NULL) > 0)
			;
	} else {
		fprintf(stderr, "load: no mode %s\n", mode);
		return 2;
	}
	return 0;
}
