package bpfmap.sys;

import java.util.function.Function;

/** Makes the exception of a system call on a machine where none is made. */
public final class Refusal {
    private Refusal() {}

    private static volatile Function<String, RuntimeException> exceptions =
        UnsupportedOperationException::new;

    /** Sets the function that turns a reason into an exception. */
    public static void setExceptions(Function<String, RuntimeException> function) {
        exceptions = function;
    }

    static RuntimeException exception(String reason) {
        return exceptions.apply(reason);
    }
}
