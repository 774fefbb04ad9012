package bpfmap.sys;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;

/**
 * Reads the possible CPUs of the kernel. A per-CPU map holds one value for each, online or offline.
 */
public final class PossibleCpus {
    private PossibleCpus() {}

    /** Upper bound for CPU numbers ({@code CONFIG_NR_CPUS} is at most 8192). */
    private static final int LIMIT = 1 << 16;

    private static final Path POSSIBLE = Path.of("/sys/devices/system/cpu/possible");

    /**
     * Returns the numbers of the possible CPUs, ascending. They do not change while the system
     * runs.
     *
     * @throws IOException if the file cannot be read
     * @throws IllegalArgumentException if it does not hold a list of CPUs
     */
    public static int[] possible() throws IOException {
        return parse(Files.readString(POSSIBLE));
    }

    /**
     * Reads a list of CPUs as the kernel prints it: {@code 0}, {@code 0-3}, {@code 0,3-4}.
     *
     * @throws IllegalArgumentException for any other text, with the text in the message
     */
    public static int[] parse(String text) {
        int[] cpus = new int[0];
        int last = -1;
        for (String range : text.strip().split(",", -1)) {
            String[] ends = range.split("-", -1);
            int from = number(ends[0], text);
            int to = ends.length == 1 ? from : number(ends[1], text);
            if (ends.length > 2 || from <= last || to < from) {
                throw garbage(text);
            }
            int old = cpus.length;
            cpus = Arrays.copyOf(cpus, old + to - from + 1);
            for (int i = 0; i <= to - from; i++) {
                cpus[old + i] = from + i;
            }
            last = to;
        }
        return cpus;
    }

    private static int number(String digits, String text) {
        if (digits.isEmpty() || digits.length() > 6
                || !digits.chars().allMatch(c -> c >= '0' && c <= '9')) {
            throw garbage(text);
        }
        int number = Integer.parseInt(digits);
        if (number >= LIMIT) {
            throw garbage(text);
        }
        return number;
    }

    private static IllegalArgumentException garbage(String text) {
        return new IllegalArgumentException("not a list of CPUs such as 0-3 or 0,2-4: \""
            + text.strip() + "\"");
    }
}
